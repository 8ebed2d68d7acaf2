//! Byte-pair models from vocabularies in all their forms.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};

use super::assemble::{
    Added, Assembly, Template, byte_level, byte_level_decoder, byte_level_splits,
};
use super::config::{Config, text_of};
use super::{declared, patterns};
use crate::tokenizer::read;
use crate::{Error, Result, SpecialIds, Tokenizer};

/// Limit on the bytes of merges per byte of tokens. Real vocabularies need about 3; tokens such as
/// `aaaa…` of every length would need as many as they are long.
const MERGE_BYTES: usize = 64;

/// One token of a vocabulary that ranks its tokens and not its merges.
pub(super) struct Ranked<'a> {
    pub(super) text: &'a str,
    /// Tokens of lower rank are made first.
    pub(super) rank: usize,
}

/// The merges that make each token from any two others, those of lower rank first.
///
/// A vocabulary with ranks (tiktoken) or scores (SentencePiece) merges any two neighbours whose
/// concatenation is a token, so each way to cut a token in two is a merge with the rank of the
/// whole. The cuts of one token are ordered from the left.
pub(super) fn merges_by_rank(
    tokens: &[Ranked<'_>],
) -> std::result::Result<Vec<(String, String)>, String> {
    let known: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(index, token)| (token.text, index)).collect();
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&index| tokens[index].rank);
    let budget = tokens.iter().map(|token| token.text.len()).sum::<usize>() * MERGE_BYTES;
    let mut bytes = 0;
    let mut merges = Vec::new();
    for index in order {
        let text = tokens[index].text;
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if known.contains_key(left) && known.contains_key(right) {
                bytes += text.len();
                if bytes > budget {
                    return Err("its tokens can be made from one another in too many ways".into());
                }
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
    }
    Ok(merges)
}

/// Builds a BPE model. For the library, two tokens with the same text are one, the later.
pub(super) fn model(
    vocab: impl IntoIterator<Item = (String, u32)>,
    merges: Vec<(String, String)>,
) -> std::result::Result<BPE, String> {
    let vocab: Vocab = vocab.into_iter().collect();
    // The library assumes that no merge result is longer than the longest token.
    let mut whole = String::new();
    for (left, right) in &merges {
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        if !vocab.contains_key(whole.as_str()) {
            return Err(format!("the merge of {left:?} and {right:?} is not in the vocabulary"));
        }
    }
    BPE::builder().vocab_and_merges(vocab, merges).build().map_err(|error| error.to_string())
}

const KIND: &str = "vocab.json with merges.txt";

/// Reads GPT-2's pair of files: `encoder.json` or `vocab.json`, and `vocab.bpe` or `merges.txt`.
pub(super) fn from_files(vocab: &Path, merges: &Path, config: &Config) -> Result<Tokenizer> {
    let fail =
        |path: &Path, reason: String| Error::Import { kind: KIND, path: Some(path.into()), reason };
    let json = read(vocab)?;
    let mut table: HashMap<String, u32> =
        serde_json::from_slice(&json).map_err(|error| fail(vocab, error.to_string()))?;
    // Tokens that are declared with an id beyond the vocabulary take this id.
    let mut taken: HashSet<u32> = table.values().copied().collect();
    for (token, id) in declared::listed(config) {
        if taken.insert(id) {
            table.entry(token.content).or_insert(id);
        }
    }
    let largest = table.values().max().map_or(0, |&id| id as usize);
    crate::table::check_size(table.len(), largest + 1)
        .map_err(|error| fail(vocab, error.to_string()))?;
    let text = String::from_utf8(read(merges)?).map_err(|e| fail(merges, e.to_string()))?;
    let pairs = merge_lines(&text).map_err(|reason| fail(merges, reason))?;

    // Byte-level vocabularies of this form are GPT-2's or Qwen's; Qwen's configuration says so.
    let class = config.class();
    let qwen = class.starts_with("Qwen2");
    let (normalizer, pattern) = if qwen {
        (serde_json::json!({"type": "NFC"}), patterns::QWEN2)
    } else {
        (Value::Null, patterns::GPT2)
    };
    let added: Vec<Added> = ["<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>"]
        .iter()
        .filter_map(|name| {
            let id = *table.get(*name)?;
            Some(Added::new(id, *name, true))
        })
        .collect();
    let find = |name: &str| added.iter().find(|token| token.name == name).map(|token| token.id);
    let around = |name: &str| find(name).map(|id| (name.to_owned(), id)).into_iter().collect();
    let mut frame = if class.starts_with("Roberta") {
        Template { before: around("<s>"), after: around("</s>"), repeat_before: false }
    } else {
        Template::default()
    };
    let role = |key: &str| {
        let name = text_of(&config[key]).unwrap_or("<|endoftext|>");
        table.get(name).map(|&id| (name.to_owned(), id))
    };
    config.frame(&mut frame, role("bos_token"), role("eos_token"));
    let pre_tokenizer = match (config["add_prefix_space"].as_bool(), qwen) {
        // A space before the text comes first, so one step cuts and writes bytes.
        (Some(true), false) => byte_level(true),
        (Some(true), true) => {
            let reason = "add_prefix_space is true, expected false for Qwen";
            return Err(fail(vocab, reason.to_owned()));
        }
        _ => byte_level_splits(&[pattern]),
    };
    Assembly {
        model: model(table, pairs).map_err(|reason| fail(merges, reason))?.into(),
        normalizer,
        pre_tokenizer,
        decoder: byte_level_decoder(),
        frame,
        ids: SpecialIds::default(),
        added,
    }
    .build(KIND)
}

/// The lines of a `merges.txt`: two tokens with a space between; a first line may name a version.
fn merge_lines(text: &str) -> std::result::Result<Vec<(String, String)>, String> {
    let mut merges = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.is_empty() || (index == 0 && line.starts_with("#version")) {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => {
                merges.push((left.to_owned(), right.to_owned()));
            }
            _ => return Err(format!("line {}: expected two tokens, found {line:?}", index + 1)),
        }
    }
    Ok(merges)
}
