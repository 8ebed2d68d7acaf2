//! Overrides from the command line, values of the base recipe, and suggestions for misspelt keys.

use toml::{Table, Value};

/// Advice for an override that is none.
pub(super) const HINT: &str = "write --set section.key=value, as in --set optimizer.lr=3e-4";

/// Applies one `section.key=value`. A value that is not TOML is taken as text.
pub(super) fn set(table: &mut Table, item: &str) -> Result<(), String> {
    let Some((path, value)) = item.split_once('=') else {
        return Err(format!("found `--set {item}`, expected key=value"));
    };
    let (path, value) = (path.trim(), value.trim());
    let parsed = toml::from_str::<Table>(&format!("value = {value}"));
    let value = match parsed.ok().and_then(|mut t| t.remove("value")) {
        Some(value) => value,
        None => Value::String(value.to_owned()),
    };
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().filter(|k| !k.is_empty());
    let Some(last) = last else { return Err(format!("found `--set {item}` without a key")) };
    let mut at = table;
    for key in keys {
        let next = at.entry(key).or_insert_with(|| Value::Table(Table::new()));
        at = match next {
            Value::Table(table) => table,
            _ => return Err(format!("`{key}` in `--set {item}` is a value, expected a section")),
        };
    }
    // People type a whole number for a fractional setting.
    let value = match (at.get(last), value) {
        (Some(Value::Float(_)), Value::Integer(i)) => Value::Float(i as f64),
        (_, value) => value,
    };
    at.insert(last.to_owned(), value);
    Ok(())
}

/// Keys that define a run. A recipe file names them; the base recipe has placeholders for them.
pub(super) const DEFINING: [&str; 9] = [
    "run.dir",
    "data.path",
    "model.path",
    "optimizer.lr",
    "schedule.warmup_steps",
    "schedule.min_ratio",
    "train.steps",
    "train.batch_size",
    "train.seq_len",
];

/// Adds the keys that `table` lacks from the base recipe: not those that define a run, and none of
/// a section with a `kind` other than the base recipe's.
pub(super) fn extend(table: &mut Table, base: Table) {
    for (section, defaults) in base {
        let Value::Table(defaults) = defaults else { continue };
        // Tokenizer, model, objective, optimiser and schedule are chosen by the recipe.
        if defaults.contains_key("kind") && !table.contains_key(&section) {
            continue;
        }
        let given = table.entry(&section).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(given) = given else { continue };
        if defaults.contains_key("kind") && given.get("kind") != defaults.get("kind") {
            continue;
        }
        for (key, value) in defaults {
            if !DEFINING.contains(&format!("{section}.{key}").as_str()) {
                given.entry(key).or_insert(value);
            }
        }
    }
}

/// Leaves the keys of the optimiser in the recipe `text` behind if overrides chose another kind.
/// Keys of the same name mean another thing there: a rate or a decay of one is none of the other.
pub(super) fn replace_optimizer(table: &mut Table, text: &str, overrides: &[String]) {
    const SECTION: &str = "optimizer";
    let kind = |table: &Table| table.get(SECTION).and_then(|s| s.get("kind")).cloned();
    let former = toml::from_str::<Table>(text).ok().and_then(|table| kind(&table));
    if former.is_none() || former == kind(table) {
        return;
    }
    table.remove(SECTION);
    let own = |item: &&String| item.trim_start().starts_with("optimizer.");
    for item in overrides.iter().filter(own) {
        // Each was read before, so none fails.
        let _ = set(table, item);
    }
}

/// Removes the key of an "unknown field" error if it belongs to a former kind of its section, which
/// an override changed. Returns whether it did. A key that an override itself set stays an error.
pub(super) fn drop_stale(table: &mut Table, message: &str, overrides: &[String]) -> bool {
    let unknown = message.strip_prefix("unknown field `").and_then(|m| m.split_once('`'));
    let Some((unknown, _)) = unknown else { return false };
    let keys = || overrides.iter().filter_map(|o| Some(o.split_once('=')?.0.trim()));
    for section in keys().filter_map(|key| key.strip_suffix(".kind")) {
        let set = format!("{section}.{unknown}");
        // `--set optimizer.head.lr` sets a key of a key.
        let is_it =
            |key: &str| key == set || key.strip_prefix(&set).is_some_and(|k| k.starts_with('.'));
        if !keys().any(is_it)
            && let Some(Value::Table(section)) = table.get_mut(section)
            && section.remove(unknown).is_some()
        {
            return true;
        }
    }
    false
}

/// Names a key of `table` that the recipe read from it, written as `used`, does not have. Serde
/// does not report unknown keys of a kind without keys of its own. Keys that a former kind of a
/// section left behind are no fault.
pub(super) fn unused(table: &Table, used: &str, overrides: &[String]) -> Option<String> {
    let used: Table = toml::from_str(used).ok()?;
    let is_set =
        |key: &str| overrides.iter().any(|o| o.split_once('=').map(|s| s.0.trim()) == Some(key));
    for (section, keys) in table {
        let known = used.get(section).and_then(Value::as_table);
        for key in keys.as_table().into_iter().flat_map(Table::keys) {
            let is_stale =
                is_set(&format!("{section}.kind")) && !is_set(&format!("{section}.{key}"));
            if !is_stale && known.is_some_and(|known| !known.contains_key(key)) {
                let kind = known.and_then(|k| k.get("kind")).and_then(Value::as_str);
                let of = kind.map_or_else(String::new, |kind| format!(" with kind = {kind:?}"));
                return Some(format!("unknown field `{key}` in [{section}]{of}"));
            }
        }
    }
    None
}

/// Lists the keys that differ between two recipes: "train.steps is 4 instead of 9".
pub(super) fn differences(there: &str, here: &str) -> Vec<String> {
    let [there, here] = [there, here].map(|text| toml::from_str::<Table>(text).unwrap_or_default());
    let mut found = Vec::new();
    let value = |table: &Table, section: &str, key: &str| -> String {
        let value = table.get(section).and_then(|section| section.get(key));
        value.map_or_else(|| "not set".to_owned(), ToString::to_string)
    };
    for section in here.keys() {
        let of = |table: &Table| -> Vec<String> {
            let keys =
                table.get(section).and_then(Value::as_table).into_iter().flat_map(Table::keys);
            keys.cloned().collect()
        };
        let mut keys = of(&there);
        keys.extend(of(&here).into_iter().filter(|key| !keys.contains(key)).collect::<Vec<_>>());
        for key in keys {
            let (old, new) = (value(&there, section, &key), value(&here, section, &key));
            if old != new {
                found.push(format!("{section}.{key} is {old} instead of {new}"));
            }
        }
    }
    found
}

/// Suggests the nearest expected name for "unknown field `x`, expected one of `a`, `b`".
pub(super) fn suggestion(message: &str) -> Option<String> {
    let (unknown, expected) = message.strip_prefix("unknown field `")?.split_once('`')?;
    let names = expected.split('`').skip(1).step_by(2);
    let nearest = names.min_by_key(|name| distance(unknown, name))?;
    let close = distance(unknown, nearest) <= unknown.len().max(nearest.len()) / 2;
    close.then(|| format!("did you mean `{nearest}`?"))
}

/// Computes the Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
