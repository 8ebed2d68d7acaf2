//! Checks of a `tokenizer.json` before the library reads it. They cover assumptions that the
//! library does not check, because a damaged file would make it panic.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::sections::{SECTIONS, Sections, unknown_kind};
use crate::table::check_size;
use crate::{Error, Result};

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    model: Option<Model<'a>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Value,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(borrow, default)]
    vocab: Vocab<'a>,
    #[serde(borrow, default)]
    merges: Merges<'a>,
    #[serde(borrow, default)]
    continuing_subword_prefix: Option<Cow<'a, str>>,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

/// A string that borrows from the file unless an escape forces a copy.
#[derive(Deserialize, PartialEq, Eq, Hash)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The tokens of a map from tokens to ids; empty for a list of pieces with scores.
#[derive(Default)]
struct Vocab<'a> {
    tokens: HashSet<Cow<'a, str>>,
    largest: u64,
}

/// Merges as pairs, or as one string with a space between, the older form.
#[derive(Default)]
struct Merges<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge<'a> {
    Pair(#[serde(borrow)] Text<'a>, #[serde(borrow)] Text<'a>),
    Line(#[serde(borrow)] Text<'a>),
}

/// Refuses files that would make the library panic, and kinds of steps that are not known. Returns
/// the sections of the others.
pub(crate) fn tokenizer_json(json: &str) -> Result<Sections> {
    let refuse = |reason: String| Err(Error::Json { path: None, reason });
    let file: File<'_> = match serde_json::from_str(json) {
        Ok(file) => file,
        Err(error) => return refuse(error.to_string()),
    };
    if let Some(model) = &file.model {
        let largest = usize::try_from(model.vocab.largest).unwrap_or(usize::MAX - 1);
        check_size(model.vocab.tokens.len(), largest + 1)?;
        if let Some(reason) = bad_merge(model) {
            return refuse(reason);
        }
        let kind = model.settings.get("type").and_then(Value::as_str);
        if let Some(reason) = unknown_kind("model", kind) {
            return refuse(format!("model: {reason}"));
        }
    }
    for (part, value) in [
        ("normalizer", &file.normalizer),
        ("pre_tokenizer", &file.pre_tokenizer),
        ("post_processor", &file.post_processor),
        ("decoder", &file.decoder),
    ] {
        if let Some(reason) = bad_step(part, value) {
            return refuse(format!("{part}: {reason}"));
        }
    }
    let is_unknown = |name: &String| !SECTIONS.contains(&name.as_str());
    Ok(Sections {
        normalizer: file.normalizer,
        pre_tokenizer: file.pre_tokenizer,
        post_processor: file.post_processor,
        decoder: file.decoder,
        added_tokens: file.added_tokens,
        model: file.model.map(|model| model.settings).unwrap_or_default(),
        unknown: file.others.into_iter().map(|(name, _)| name).filter(is_unknown).collect(),
    })
}

/// Finds a merge whose result is not in the vocabulary. The library would look it up in a buffer as
/// long as the longest token.
fn bad_merge(model: &Model<'_>) -> Option<String> {
    let prefix = model.continuing_subword_prefix.as_deref().unwrap_or_default();
    let mut merged = String::new();
    model
        .merges
        .0
        .iter()
        .find_map(|(left, right)| {
            merged.clear();
            merged.push_str(left);
            merged.push_str(right.strip_prefix(prefix)?);
            let known = model.vocab.tokens.contains(merged.as_str());
            (!known)
                .then(|| format!("the merge of {left:?} and {right:?} is not in the vocabulary"))
        })
        .or_else(|| {
            let lacks = |(_, right): &&(Cow<'_, str>, Cow<'_, str>)| !right.starts_with(prefix);
            let (left, right) = model.merges.0.iter().find(lacks)?;
            Some(format!("the merge of {left:?} and {right:?} lacks the prefix {prefix:?}"))
        })
}

/// Returns what is wrong with a normaliser, pre-tokeniser or post-processor, or with a member of
/// it.
fn bad_step(part: &str, step: &Value) -> Option<String> {
    if let Some(reason) = unknown_kind(part, step["type"].as_str()) {
        return Some(reason);
    }
    if let Some(reason) = bad_choice(&step["pattern"], &["String", "Regex"]) {
        return Some(format!("pattern {reason}"));
    }
    match step["type"].as_str() {
        Some("Precompiled") => {
            let map = STANDARD.decode(step["precompiled_charsmap"].as_str()?);
            match map {
                Ok(map) => charsmap(&map).err(),
                Err(error) => Some(format!("precompiled_charsmap is not base64: {error}")),
            }
        }
        Some("FixedLength") if step["length"] == 0 => Some("FixedLength of 0".to_owned()),
        Some("TemplateProcessing") => bad_template(step),
        _ => ["normalizers", "pretokenizers", "processors", "decoders"]
            .iter()
            .filter_map(|key| step[key].as_array())
            .flatten()
            .find_map(|step| bad_step(part, step)),
    }
}

/// Returns what is wrong with an object that has one of the keys `known`, and no other.
fn bad_choice(value: &Value, known: &[&str]) -> Option<String> {
    let keys = value.as_object()?.keys();
    let other = keys.into_iter().find(|key| !known.contains(&key.as_str()))?;
    Some(format!("has the key {other:?}, expected one of {}", known.join(", ")))
}

fn bad_template(step: &Value) -> Option<String> {
    let names = step["special_tokens"].as_object();
    for (key, sequences) in [("single", &["A"] as &[&str]), ("pair", &["A", "B"])] {
        // A template may also be text; the library reads and checks that form.
        for piece in step[key].as_array().into_iter().flatten() {
            if let Some(reason) = bad_choice(piece, &["SpecialToken", "Sequence"]) {
                return Some(format!("{key} {reason}"));
            }
            if let Some(name) = piece["SpecialToken"]["id"].as_str()
                && !names.is_some_and(|names| names.contains_key(name))
            {
                return Some(format!("{key} names {name:?}, which is not in special_tokens"));
            }
            if let Some(name) = piece["Sequence"]["id"].as_str()
                && !sequences.contains(&name)
            {
                return Some(format!("{key} has sequence {name:?}, expected {sequences:?}"));
            }
        }
        if let Some(template) = step[key].as_str()
            && key == "single"
            && template.contains("$B")
        {
            return Some("single has sequence \"B\"".to_owned());
        }
    }
    None
}

/// Checks SentencePiece's compiled normalisation: `u32` size of a double array in bytes, the array
/// of `u32` units, and replacement strings that each end in a zero byte.
///
/// A unit has its label in bits 0 to 7 (and bit 31 marks a value), bit 8 says that a value follows,
/// and bits 9 to 31 the offset to its children. Every node that a text could reach must lie inside
/// the array. Source of the layout: <https://github.com/s-yata/darts-clone>.
pub(crate) fn charsmap(map: &[u8]) -> std::result::Result<(), String> {
    let unit = |bytes: &[u8]| match bytes {
        &[a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    };
    let (head, rest) = map.split_at_checked(4).ok_or("precompiled_charsmap is shorter than 4")?;
    let size = usize::try_from(unit(head)).unwrap_or(usize::MAX);
    if size == 0 || size % 4 != 0 || size > rest.len() {
        return Err(format!("precompiled_charsmap has {} bytes and names {size}", rest.len()));
    }
    let (array, strings) = rest.split_at(size);
    let strings = std::str::from_utf8(strings)
        .map_err(|error| format!("the strings of precompiled_charsmap: {error}"))?;
    let units: Vec<u32> = array.chunks_exact(4).map(unit).collect();
    for (index, &unit) in units.iter().enumerate() {
        if unit >> 31 == 1 {
            continue;
        }
        let offset = ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let child = index ^ offset;
        if child | 0xFF >= units.len() {
            return Err(format!("unit {index} of precompiled_charsmap points outside"));
        }
        if unit >> 8 & 1 == 1 {
            let value = (units[child] & 0x7FFF_FFFF) as usize;
            if !strings.is_char_boundary(value) {
                return Err(format!("unit {index} of precompiled_charsmap names no string"));
            }
        }
    }
    Ok(())
}

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Vocab<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tokens to ids or a list of pieces")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Vocab<'de>, A::Error> {
                let mut vocab = Vocab::default();
                while let Some((Text(token), id)) = map.next_entry::<Text<'de>, u64>()? {
                    vocab.largest = vocab.largest.max(id);
                    vocab.tokens.insert(token);
                }
                Ok(vocab)
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> std::result::Result<Vocab<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Vocab::default())
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Merges<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let merges = Vec::<Merge<'de>>::deserialize(deserializer)?;
        let pairs = merges.into_iter().filter_map(|merge| match merge {
            Merge::Pair(Text(left), Text(right)) => Some((left, right)),
            // The library refuses lines of other shapes.
            Merge::Line(Text(Cow::Borrowed(line))) => {
                let (left, right) = line.split_once(' ')?;
                Some((Cow::Borrowed(left), Cow::Borrowed(right)))
            }
            Merge::Line(Text(Cow::Owned(line))) => {
                let (left, right) = line.split_once(' ')?;
                Some((Cow::Owned(left.to_owned()), Cow::Owned(right.to_owned())))
            }
        });
        Ok(Self(pairs.collect()))
    }
}
