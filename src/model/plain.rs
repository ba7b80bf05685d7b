//! Objects in JSON files that people write by hand, and what is wrong with them in plain words, by field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

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
    const LENGTH_MAX: usize = 40;
    let text = value.to_string();
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::String(_) if text.len() > LENGTH_MAX => "a text".to_owned(),
        Value::Array(_) if text.len() > LENGTH_MAX => "a list".to_owned(),
        Value::String(_) => format!("the text {text}"),
        _ => text,
    }
}
