//! Tokens that the files beside a tokenizer declare: `added_tokens_decoder`,
//! `additional_special_tokens`, `eos_token` and the like, and `added_tokens.json`. As in
//! transformers, they are found in a text before everything else, and those that these files call
//! special are special, whatever the tokenizer itself says.

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

use super::config::{Config, text_of};
use crate::keys::{Keys, not_used};
use crate::specials::{has_special_shape, roles};

/// A token that a file declares.
struct Declared {
    token: AddedToken,
    /// Where it is declared.
    place: String,
    source: Source,
}

enum Source {
    /// With its id and settings.
    Listed(u32),
    /// By name, as a special token.
    Special,
    /// By name, as the token of a role such as `eos_token`.
    Role,
}

/// Adds the declared tokens to `tokenizer`. Returns whether it changed.
///
/// # Errors
/// The library cannot add a token.
pub(super) fn add(tokenizer: &mut HfTokenizer, config: &Config) -> tokenizers::Result<bool> {
    let mut added = Vec::new();
    for Declared { token, place, source } in declared(config) {
        let name = token.content.clone();
        let id = tokenizer.token_to_id(&name);
        let current = id.and_then(|id| {
            tokenizer.get_added_vocabulary().get_added_tokens_decoder().get(&id).cloned()
        });
        let special = |token: AddedToken| AddedToken { special: true, ..token };
        let wanted = match (source, id, current) {
            (Source::Listed(_), ..) => Some(token),
            // The tokenizer's own settings stay.
            (_, Some(_), Some(current)) => Some(special(current)),
            (Source::Special, ..) => Some(token),
            (Source::Role, Some(_), None) if has_special_shape(&name) => Some(token),
            (Source::Role, Some(_), None) => {
                config.warn(format!("{place} is {name:?}, a word of the vocabulary; it stays one"));
                None
            }
            (Source::Role, None, _) => {
                config.warn(format!("{place} is {name:?}, which is not in the vocabulary"));
                None
            }
        };
        added.extend(wanted);
    }
    let changed = tokenizer.add_tokens(added)? > 0;
    for Declared { token, place, source } in declared(config) {
        let id = tokenizer.token_to_id(&token.content);
        if let (Source::Listed(listed), Some(id)) = (source, id)
            && listed != id
        {
            let name = token.content;
            config.warn(format!("{place}: {name:?} has the id {listed}, but its id here is {id}"));
        }
    }
    Ok(changed)
}

/// Returns the tokens with their ids, for vocabularies that are built from parts.
pub(super) fn listed(config: &Config) -> Vec<(AddedToken, u32)> {
    let with_id = |declared: Declared| match declared.source {
        Source::Listed(id) => Some((declared.token, id)),
        Source::Special | Source::Role => None,
    };
    declared(config).into_iter().filter_map(with_id).collect()
}

/// All declared tokens: listed ones by rising id, then those that are only named.
fn declared(config: &Config) -> Vec<Declared> {
    let mut named: Vec<Declared> = config
        .names()
        .into_iter()
        .filter_map(|key| role(config, key))
        .chain(
            ["additional_special_tokens", "extra_special_tokens"]
                .into_iter()
                .flat_map(|key| group(key, &config[key])),
        )
        .collect();
    let is_special = |name: &str| named.iter().any(|declared| declared.token.content == name);
    let mut all = Vec::new();
    if let Some(entries) = config["added_tokens_decoder"].as_object() {
        for (id, entry) in entries {
            let place = format!("added_tokens_decoder[{id}]");
            let token = token(entry, false);
            let (Ok(id), Some(mut token)) = (id.parse(), token) else { continue };
            token.special |= is_special(&token.content);
            all.push(Declared { token, place, source: Source::Listed(id) });
        }
    }
    for (name, id) in config.added() {
        if all.iter().all(|declared| declared.token.content != *name) {
            let special = is_special(name);
            let token = AddedToken::from(name.as_str(), special);
            let place = "added_tokens.json".to_owned();
            all.push(Declared { token, place, source: Source::Listed(*id) });
        }
    }
    all.sort_by_key(|declared| match declared.source {
        Source::Listed(id) => id,
        Source::Special | Source::Role => u32::MAX,
    });
    named.retain(|other| all.iter().all(|one| one.token.content != other.token.content));
    all.append(&mut named);
    all
}

/// The token of a key such as `eos_token` or `image_token`.
fn role(config: &Config, key: &str) -> Option<Declared> {
    if !key.ends_with("_token") || text_of(config.peek(key)?).is_none() {
        return None;
    }
    let token = token(&config[key], true)?;
    let source = if roles().contains(&key) { Source::Role } else { Source::Special };
    Some(Declared { token, place: key.to_owned(), source })
}

/// The tokens of a list, or of an object whose keys are names for templates.
fn group(key: &str, value: &Value) -> Vec<Declared> {
    let members: Vec<&Value> = match value {
        Value::Array(members) => members.iter().collect(),
        Value::Object(members) => members.values().collect(),
        _ => Vec::new(),
    };
    let declared = |(index, member): (usize, &Value)| {
        let token = token(member, true)?;
        Some(Declared { token, place: format!("{key}[{index}]"), source: Source::Special })
    };
    members.into_iter().enumerate().filter_map(declared).collect()
}

/// A token that is written as a text or as an object with its settings.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    let name = text_of(value).filter(|name| !name.is_empty())?;
    let flag = |key: &str, default: bool| value[key].as_bool().unwrap_or(default);
    let special = special || flag("special", false);
    Some(AddedToken {
        content: name.to_owned(),
        single_word: flag("single_word", false),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        normalized: flag("normalized", !special),
        special,
    })
}

/// Warns of keys of declared tokens that mean nothing here, and of tokens that are none.
pub(super) fn check(config: &Config) {
    let mut unknown = Vec::new();
    let mut one = |place: String, value: &Value| match value {
        Value::Object(fields) => {
            unknown.extend(unknown_keys(fields).map(|key| format!("{place}.{key}")));
            if text_of(value).is_none() {
                unknown.push(place);
            }
        }
        Value::String(_) | Value::Null => {}
        _ => unknown.push(place),
    };
    for (id, entry) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        let place = format!("added_tokens_decoder[{id}]");
        match id.parse::<u32>() {
            Ok(_) => one(place, entry),
            Err(_) => one(place, &Value::Bool(false)),
        }
    }
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        match &config[key] {
            Value::Array(members) => {
                members
                    .iter()
                    .enumerate()
                    .for_each(|(i, member)| one(format!("{key}[{i}]"), member));
            }
            Value::Object(members) => {
                members.iter().for_each(|(name, member)| one(format!("{key}.{name}"), member));
            }
            other => one(key.to_owned(), other),
        }
    }
    for key in config.names() {
        if let Some(value @ Value::Object(_)) = config.peek(key)
            && key.ends_with("_token")
        {
            one(key.to_owned(), value);
        }
    }
    if let Some(text) = not_used("tokenizer_config.json", &unknown) {
        config.warn(text);
    }
}

fn unknown_keys(fields: &Map<String, Value>) -> impl Iterator<Item = String> {
    let keys = Keys::new(fields.clone());
    for known in ["content", "single_word", "lstrip", "rstrip", "normalized", "special", "id"] {
        keys.get(known);
    }
    // How Python marks the type.
    keys.get("__type");
    let unread: Vec<String> = keys.unread().iter().map(|(key, _)| (*key).to_owned()).collect();
    unread.into_iter()
}
