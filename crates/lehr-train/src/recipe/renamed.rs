//! Keys that had another name in earlier versions.

use toml::Table;

/// Section, old key, new key.
const RENAMED: [(&str, &str, &str); 4] = [
    ("train", "rows", "batch_size"),
    ("train", "len", "seq_len"),
    ("train", "accumulation", "grad_accumulation"),
    ("train", "activations", "activation_checkpointing"),
];

/// Returns `--set` items with the current names of keys, and a note for each that had an old name.
/// A command line of an earlier version keeps its meaning; a recipe file, which is kept, is
/// corrected. `train.activations` stays as it is, because its values were renamed too.
#[must_use]
pub fn current_names(sets: &[String]) -> (Vec<String>, Vec<String>) {
    let mut notes = Vec::new();
    let current = |item: &String| {
        let (key, value) = item.split_once('=')?;
        let is_it = |(section, old, _): &&(&str, &str, &str)| {
            key.trim() == format!("{section}.{old}") && *old != "activations"
        };
        let (section, _, new) = RENAMED.iter().find(is_it)?;
        let key = key.trim();
        notes.push(format!("{key} is now called {section}.{new}; --set {item} is used as that"));
        Some(format!("{section}.{new}={value}"))
    };
    let current = sets.iter().map(current).collect::<Vec<_>>();
    let sets = sets.iter().zip(current).map(|(old, new)| new.unwrap_or_else(|| old.clone()));
    (sets.collect(), notes)
}

/// Returns the error and the hint for old keys in `recipe`; `None` if it has none.
pub(super) fn find(recipe: &Table) -> Option<(String, String)> {
    let has = |(section, old, _): &(&str, &str, &str)| {
        recipe.get(*section).and_then(toml::Value::as_table).is_some_and(|t| t.contains_key(*old))
    };
    let found: Vec<_> = RENAMED.iter().copied().filter(has).collect();
    if found.is_empty() {
        return None;
    }
    let say = |(section, old, new): &(&str, &str, &str)| {
        format!("{section}.{old} is now called {section}.{new}")
    };
    let reason = found.iter().map(say).collect::<Vec<_>>().join("; ");
    let value = match found.iter().any(|(_, old, _)| *old == "activations") {
        true => "; its value \"keep\" is now \"none\"",
        false => "",
    };
    Some((reason, format!("write the new name{value}")))
}
