//! The keys of a file that nothing reads.
//!
//! [`Keys`] records which keys of an object its reader asked for. [`dropped`] finds the keys that a
//! library left out of what it read. Both become one warning per file ([`not_used`]), so no key is
//! ignored without a word. `import/config.rs` has the keys that change neither ids nor text.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Most keys that one warning lists.
const LISTED: usize = 20;

/// A JSON object that records which of its keys were read.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    fields: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl Keys {
    pub(crate) fn new(fields: Map<String, Value>) -> Self {
        Self { fields, read: RefCell::default() }
    }

    /// Returns the value of a key, if it is there, and records the key as read.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        let value = self.fields.get(key)?;
        self.read.borrow_mut().insert(key.to_owned());
        Some(value)
    }

    /// Returns all pairs. Records nothing.
    pub(crate) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Returns the pairs whose key was not read. A null is as good as a missing key.
    pub(crate) fn unread(&self) -> Vec<(&str, &Value)> {
        let read = self.read.borrow();
        let is_unread = |(key, value): &(&String, &Value)| !read.contains(*key) && !value.is_null();
        self.fields.iter().filter(is_unread).map(|(key, value)| (key.as_str(), value)).collect()
    }
}

/// Adds to `found` the keys of `given` that are not in `kept`, as `kept` is written by the library
/// that read `given`. `at` is the path of both.
pub(crate) fn dropped(at: &str, given: &Value, kept: &Value, found: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                let at = format!("{at}.{key}");
                match kept.get(key) {
                    Some(kept) => dropped(&at, value, kept, found),
                    None if value.is_null() => {}
                    None => found.push(at),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                dropped(&format!("{at}[{index}]"), given, kept, found);
            }
        }
        _ => {}
    }
}

/// Returns a warning that keys of `file` are not used; `None` if there are none.
pub(crate) fn not_used(file: &str, keys: &[String]) -> Option<String> {
    let (count, is) = match keys.len() {
        0 => return None,
        1 => ("one key".to_owned(), "is"),
        n => (format!("{n} keys"), "are"),
    };
    let mut listed = keys.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    if keys.len() > LISTED {
        listed += &format!(" and {} more", keys.len() - LISTED);
    }
    Some(format!("{file}: {count} {is} not used: {listed}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_nothing_read_are_listed_with_their_count() {
        let Value::Object(fields) = json!({"a": 1, "b": null, "c": {"x": 0}, "d": false}) else {
            unreachable!("an object")
        };
        let keys = Keys::new(fields);
        assert_eq!((keys.get("a"), keys.get("z")), (Some(&json!(1)), None));
        let unread: Vec<String> = keys.unread().iter().map(|(key, _)| (*key).to_owned()).collect();
        let text = not_used("f.json", &unread).unwrap();
        assert_eq!(text, "f.json: 2 keys are not used: c, d");
        assert_eq!(not_used("f.json", &[]), None);
    }

    #[test]
    fn keys_that_a_library_drops_are_found_at_any_depth() {
        let given = json!({"type": "A", "list": [{"k": 1, "x": 2}, 3], "y": {}, "z": null});
        let kept = json!({"type": "A", "list": [{"k": 1}, 3], "more": 1});
        let mut found = Vec::new();
        dropped("normalizer", &given, &kept, &mut found);
        assert_eq!(found, ["normalizer.list[0].x", "normalizer.y"]);
    }
}
