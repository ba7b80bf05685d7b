//! A key that stands twice in one object of a JSON text: whoever reads it takes one of the two values, and which one is
//! chance.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A key that an object has twice.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RepeatedKey {
    pub(crate) key: String,
    /// Where it stands again: its line, from 1.
    pub(crate) line: usize,
    /// And its column, from 1.
    pub(crate) column: usize,
}

/// The first such key of the first JSON value in `bytes`; none where something else is wrong before it.
pub(crate) fn repeated_key(bytes: &[u8]) -> Option<RepeatedKey> {
    let found = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let error = Unrepeated { found: &found }.deserialize(&mut deserializer).err()?;
    found.into_inner().map(|key| RepeatedKey { key, line: error.line(), column: error.column() })
}

/// Any value, all of whose objects have each key once.
#[derive(Clone, Copy)]
struct Unrepeated<'f> {
    /// A key that stands twice, which the error itself only tells in words.
    found: &'f RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Unrepeated<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unrepeated<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while entries.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if let Some(key) = keys.replace(key.clone()) {
                self.found.replace(Some(key));
                return Err(A::Error::custom("a key stands twice"));
            }
            entries.next_value_seed(self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_in_one_object_is_found_at_its_place() {
        let found =
            |text: &str| repeated_key(text.as_bytes()).map(|found| (found.key, found.line, found.column));
        assert_eq!(found("{\"a\": 1,\n \"a\": 2}"), Some(("a".to_owned(), 2, 4)));
        assert_eq!(found(r#"[{"a": {"b": null, "b": true}}]"#), Some(("b".to_owned(), 1, 22)));
        assert_eq!(found(r#"{"a": "\u0062", "b": {"a": [{"a": 1.5}, {"a": -1}]}}"#), None);
        assert_eq!(found(r#"{"\u0061": 1, "a": 2}"#).map(|(key, ..)| key), Some("a".to_owned()));
        assert_eq!(found(r#"{"a": 1, "b" 2, "a": 3}"#), None, "something else is wrong");
    }
}
