//! Objects in JSON files that people write by hand, and what is wrong with them in plain words, by field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::checkpoint::nearest;

/// Characters of a file's own words that are shown.
const LENGTH_MAX: usize = 40;

/// Reads an object; a field that is null counts as absent, as in files that Python wrote.
///
/// `sound` is an object that can be read: what is wrong with a field is told by its field of the same name.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8], sound: impl Fn() -> Value) -> Result<T, String> {
    let found: Value = serde_json::from_slice(bytes).map_err(|error| format!("expected JSON: {error}"))?;
    let Value::Object(mut object) = found else {
        return Err(format!("expected an object, found {}", with_kind(&found)));
    };
    object.retain(|_, value| !value.is_null());
    serde_json::from_value(Value::Object(object.clone())).map_err(|error| {
        let sound = sound();
        let wrong = object.iter().find_map(|(name, value)| wrong_field::<T>(name, value, sound.as_object()?));
        wrong.unwrap_or_else(|| error.to_string())
    })
}

/// Refuses an object with a field that is none of `known`: misspelt, it would pass for one that was left out.
///
/// What is no object at all is for [`read`] to tell.
pub(crate) fn refuse_unknown(bytes: &[u8], known: &[&str]) -> Result<(), String> {
    let Ok(Value::Object(object)) = serde_json::from_slice(bytes) else { return Ok(()) };
    let is_unknown = |(name, value): &(&String, &Value)| !value.is_null() && !known.contains(&name.as_str());
    let Some((name, _)) = object.iter().find(is_unknown) else { return Ok(()) };
    let nearest = nearest(name, known.iter().copied());
    let nearest = nearest.map_or_else(String::new, |name| format!("; the nearest name is `{name}`"));
    let shown: String = name.chars().take(LENGTH_MAX).collect();
    Err(format!("there is no field `{shown}`{nearest}"))
}

/// What is wrong with one field, if something is: all others are as in `sound`.
fn wrong_field<T: DeserializeOwned>(name: &str, value: &Value, sound: &Map<String, Value>) -> Option<String> {
    let right = sound.get(name)?;
    let mut object = sound.clone();
    object.insert(name.to_owned(), value.clone());
    let error = serde_json::from_value::<T>(Value::Object(object)).err()?;
    let of_its_kind = std::mem::discriminant(right) == std::mem::discriminant(value);
    let expected = match right {
        // One of a few words, which the error lists.
        Value::String(_) if of_its_kind => return Some(format!("`{name}`: {error}")),
        Value::String(_) => "a text",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "a whole number, 0 or more",
        Value::Bool(_) => "true or false",
        Value::Array(entries) if entries.iter().all(Value::is_number) => "a list of whole numbers",
        Value::Array(_) => "a list of texts",
        Value::Object(_) | Value::Null => "another value",
    };
    Some(format!("`{name}` is {}, expected {expected}", with_kind(value)))
}

/// A value as the file has it, or its kind where that is long or needs one.
fn with_kind(value: &Value) -> String {
    let text = value.to_string();
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::String(_) if text.len() > LENGTH_MAX => "a text".to_owned(),
        Value::Array(_) if text.len() > LENGTH_MAX => "a list".to_owned(),
        Value::String(_) => format!("the text {text}"),
        _ => text,
    }
}
