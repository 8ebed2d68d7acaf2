//! Mistral's `tekken.json`: tiktoken ranks with a pattern and special tokens.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::assemble::Template;
use super::tiktoken::{check_ranks, from_ranks};
use crate::keys::not_used;
use crate::{Error, Result, Tokenizer};

const KIND: &str = "tekken.json";

/// The special tokens of files that do not list them. Source: `tekken.py` of mistral-common.
const USUAL: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

#[derive(Deserialize)]
struct File {
    config: Config,
    vocab: Vec<Token>,
    #[serde(default)]
    special_tokens: Option<Vec<Special>>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    default_vocab_size: usize,
    default_num_special_tokens: u32,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct Token {
    rank: u32,
    token_bytes: String,
}

#[derive(Deserialize)]
struct Special {
    rank: u32,
    token_str: String,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Returns the keys that the reader does not use. The version and the full size of the vocabulary
/// say nothing new, and all special tokens are control tokens here.
fn unused(file: &File) -> Vec<String> {
    const KNOWN: [&str; 3] = ["version", "num_vocab_tokens", "is_control"];
    let special = file.special_tokens.iter().flatten();
    let parts = [(String::new(), &file.others), ("config.".to_owned(), &file.config.others)];
    let special = special.map(|s| (format!("special_tokens[{}].", s.rank), &s.others));
    let keys = parts.into_iter().chain(special).flat_map(|(at, others)| {
        let keys = others.keys().filter(|key| !KNOWN.contains(&key.as_str()));
        keys.map(|key| format!("{at}{key}")).collect::<Vec<_>>()
    });
    keys.collect()
}

/// Special tokens have the first ids; the token of rank r has id r + their number; ranks beyond the
/// vocabulary's size are not used.
pub(super) fn from_json(json: &[u8]) -> Result<Tokenizer> {
    let fail = |reason: String| Error::Import { kind: KIND, path: None, reason };
    let file: File = serde_json::from_slice(json).map_err(|error| fail(error.to_string()))?;
    let warning = not_used(KIND, &unused(&file));
    let offset = file.config.default_num_special_tokens;
    let words = file.config.default_vocab_size.saturating_sub(offset as usize);
    if offset as usize > json.len() {
        return Err(fail(format!("{offset} special tokens in a file of {} bytes", json.len())));
    }
    let mut tokens = Vec::new();
    for token in &file.vocab {
        if token.rank as usize >= words {
            continue;
        }
        let bytes = STANDARD
            .decode(&token.token_bytes)
            .map_err(|error| fail(format!("token of rank {}: {error}", token.rank)))?;
        let id = token.rank.checked_add(offset);
        tokens.push((bytes, id.ok_or_else(|| fail(format!("rank {}", token.rank)))?));
    }
    check_ranks(&tokens).map_err(fail)?;
    let mut names: Vec<String> = (0..offset).map(|i| format!("<SPECIAL_{i}>")).collect();
    let listed: Vec<(u32, String)> = match file.special_tokens {
        Some(listed) => listed.into_iter().map(|s| (s.rank, s.token_str)).collect(),
        None => (0..).zip(USUAL.map(str::to_owned)).collect(),
    };
    for (rank, name) in listed {
        match names.get_mut(rank as usize) {
            Some(slot) => *slot = name,
            None => {
                return Err(fail(format!("special token {name:?} has rank {rank} of {offset}")));
            }
        }
    }
    let special: Vec<(String, u32)> = names.into_iter().zip(0..).collect();
    let before = special.iter().filter(|(name, _)| name == "<s>").cloned().collect();
    let frame = Template { before, after: Vec::new(), repeat_before: true };
    let tokenizer = from_ranks(KIND, &tokens, special, &[&file.config.pattern], frame)?;
    Ok(tokenizer.with_warnings(warning.into_iter().collect()))
}
