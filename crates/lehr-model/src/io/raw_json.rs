//! JSON objects whose values keep their text, so a number is written as it was read.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

/// A JSON object with the text of each value, in file order. A value that is not replaced is
/// written as it was found: `1.5625e-07` does not become another number, and a key that lehr does
/// not know stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawObject {
    entries: Vec<(String, String)>,
}

impl RawObject {
    /// Parses an object.
    ///
    /// # Errors
    /// What is wrong with the text, if it is not a JSON object.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut object = Self::default();
        let mut rest = after(text, '{')?;
        if let Ok(end) = after(rest, '}') {
            return ends(end).map(|()| object);
        }
        loop {
            let (key, len): (String, usize) = first(rest)?;
            let value = after(&rest[len..], ':')?.trim_start();
            let (_, len): (IgnoredAny, usize) = first(value)?;
            object.set_text(&key, value[..len].to_owned());
            match after(&value[len..], ',') {
                Ok(next) => rest = next,
                Err(_) => return ends(after(&value[len..], '}')?).map(|()| object),
            }
        }
    }

    /// Returns the keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.as_str())
    }

    /// Returns the text of a value.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, text)| text.as_str())
    }

    /// Returns a value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value> {
        serde_json::from_str(self.text(key)?).ok()
    }

    /// Sets a key. A new one is appended.
    pub fn set(&mut self, key: &str, value: &Value) {
        // A line break inside a JSON text is escaped, so only those between values are indented.
        self.set_text(key, format!("{value:#}").replace('\n', "\n  "));
    }

    fn set_text(&mut self, key: &str, text: String) {
        match self.entries.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = text,
            None => self.entries.push((key.to_owned(), text)),
        }
    }

    /// Removes a key. Returns whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        let n = self.entries.len();
        self.entries.retain(|(known, _)| known != key);
        self.entries.len() < n
    }

    /// Returns the object as the text of a file.
    #[must_use]
    pub fn to_text(&self) -> String {
        let line = |(key, text): &(String, String)| format!("  {}: {text}", Value::from(&**key));
        let lines: Vec<String> = self.entries.iter().map(line).collect();
        if lines.is_empty() {
            "{}\n".to_owned()
        } else {
            format!("{{\n{}\n}}\n", lines.join(",\n"))
        }
    }
}

/// Parses the value at the start of `text`. Returns it and its length.
fn first<T: DeserializeOwned>(text: &str) -> Result<(T, usize), String> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<T>();
    match values.next() {
        Some(Ok(value)) => Ok((value, values.byte_offset())),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("it ends before the object does".to_owned()),
    }
}

/// Returns the text after `mark`, which comes first.
fn after(text: &str, mark: char) -> Result<&str, String> {
    let text = text.trim_start();
    text.strip_prefix(mark).ok_or_else(|| {
        let found: String = text.chars().take(20).collect();
        format!("found {found:?}, expected `{mark}`")
    })
}

fn ends(text: &str) -> Result<(), String> {
    match text.trim() {
        "" => Ok(()),
        more => Err(format!("{more:?} follows the object")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_of_values_stay_as_they_were() {
        let text = "\u{20}{ \"eps\":1.5625e-07 ,\"big\": 123456789012345678901234567890,\n\
                    \"map\": {\"a\": [1.0,\t2]}, \"eps2\":1e-05}\n";
        let mut object = RawObject::parse(text).unwrap();
        assert_eq!(object.keys().collect::<Vec<_>>(), ["eps", "big", "map", "eps2"]);
        assert_eq!(object.text("eps"), Some("1.5625e-07"));
        assert_eq!(object.text("map"), Some("{\"a\": [1.0,\t2]}"));
        object.set("dtype", &"float32".into());
        object.set("map", &json!({"b": [1]}));
        assert!(object.remove("eps2") && !object.remove("eps2"));
        let written = object.to_text();
        assert!(written.contains("\"eps\": 1.5625e-07,\n"), "{written}");
        assert!(written.contains("\"big\": 123456789012345678901234567890,"), "{written}");
        assert_eq!(RawObject::parse(&written).unwrap(), object);
        assert_eq!(RawObject::parse(" {} ").unwrap().to_text(), "{}\n");
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for bad in ["", "[1]", "{", "{\"a\"}", "{\"a\": }", "{\"a\": 1,}", "{} x", "{\"a\": 1} {}"]
        {
            assert!(RawObject::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_key_and_value_comes_back(
            pairs in proptest::collection::btree_map(".{0,8}", "[ -~]{0,12}|\\PC{0,4}", 0..8),
            numbers in proptest::collection::vec(any::<i64>(), 0..4),
        ) {
            let mut want: Value = json!(pairs);
            want["numbers"] = json!(numbers);
            for text in [want.to_string(), format!("{want:#}")] {
                let object = RawObject::parse(&text).unwrap();
                let back: Value = serde_json::from_str(&object.to_text()).unwrap();
                prop_assert_eq!(&back, &want);
            }
        }
    }
}
