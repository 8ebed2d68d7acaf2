//! Keys that had another name in earlier versions.

use toml::Table;

/// Section, old key, new key.
const RENAMED: [(&str, &str, &str); 4] = [
    ("train", "rows", "batch_size"),
    ("train", "len", "seq_len"),
    ("train", "accumulation", "grad_accumulation"),
    ("train", "activations", "activation_checkpointing"),
];

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
