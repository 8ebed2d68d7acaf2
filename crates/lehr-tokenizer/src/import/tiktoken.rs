//! tiktoken's rank files: per line one token in base64, and its rank.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::assemble::{Added, Assembly, Template, byte_level_decoder, byte_level_splits};
use super::bpe::{Ranked, merges_by_rank, model};
use super::patterns;
use crate::alphabet::byte_level_text;
use crate::table::check_size;
use crate::{Error, Result, SpecialIds, Tokenizer};

const KIND: &str = "tiktoken";

/// Vocabularies in tiktoken's format with known pattern and special tokens, which the files do not
/// contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TiktokenKind {
    /// GPT-2 and GPT-3: 50,256 ranks.
    R50k,
    /// Codex and text-davinci: 50,280 ranks.
    P50k,
    /// As [`P50k`](Self::P50k), with the tokens for filling in.
    P50kEdit,
    /// GPT-3.5 and GPT-4: 100,256 ranks.
    Cl100k,
    /// GPT-4o: 199,998 ranks.
    O200k,
    /// Qwen (the first): 151,643 ranks.
    Qwen,
    /// Llama 3: 128,000 ranks.
    Llama3,
    /// GLM-4: 151,329 ranks.
    Glm4,
}

impl TiktokenKind {
    /// Returns the vocabulary with this many ranks; of two, the plain one.
    pub fn by_ranks(ranks: usize) -> Option<Self> {
        Some(match ranks {
            50_256 => Self::R50k,
            50_280 => Self::P50k,
            100_256 => Self::Cl100k,
            199_998 => Self::O200k,
            151_643 => Self::Qwen,
            128_000 => Self::Llama3,
            151_329 => Self::Glm4,
            _ => return None,
        })
    }

    fn pattern(self) -> &'static str {
        match self {
            Self::R50k | Self::P50k | Self::P50kEdit => patterns::GPT2,
            Self::Cl100k | Self::Llama3 | Self::Glm4 => patterns::GPT4,
            Self::O200k => patterns::GPT4O,
            Self::Qwen => patterns::QWEN2,
        }
    }

    /// Special tokens: name and id.
    ///
    /// Sources: `tiktoken_ext/openai_public.py` of tiktoken, `tokenizer.py` of llama-models,
    /// `tokenization_qwen.py` of Qwen-7B, `tokenizer_config.json` of glm-4-9b.
    fn special(self, first: u32) -> Vec<(String, u32)> {
        let listed = |names: &[(&str, u32)]| -> Vec<(String, u32)> {
            names.iter().map(|&(name, id)| (name.to_owned(), id)).collect()
        };
        let counted =
            |names: Vec<String>| -> Vec<(String, u32)> { names.into_iter().zip(first..).collect() };
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        match self {
            Self::R50k | Self::P50k => listed(&[("<|endoftext|>", 50_256)]),
            Self::P50kEdit => listed(&[
                ("<|endoftext|>", 50_256),
                ("<|fim_prefix|>", 50_281),
                ("<|fim_middle|>", 50_282),
                ("<|fim_suffix|>", 50_283),
            ]),
            Self::Cl100k => listed(&[
                ("<|endoftext|>", 100_257),
                ("<|fim_prefix|>", 100_258),
                ("<|fim_middle|>", 100_259),
                ("<|fim_suffix|>", 100_260),
                ("<|endofprompt|>", 100_276),
            ]),
            Self::O200k => listed(&[("<|endoftext|>", 199_999), ("<|endofprompt|>", 200_018)]),
            Self::Qwen => {
                let mut names = owned(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
                names.extend((0..205).map(|i| format!("<|extra_{i}|>")));
                counted(names)
            }
            Self::Llama3 => {
                let mut names = owned(&[
                    "<|begin_of_text|>",
                    "<|end_of_text|>",
                    "<|reserved_special_token_0|>",
                    "<|reserved_special_token_1|>",
                    "<|finetune_right_pad_id|>",
                    "<|reserved_special_token_2|>",
                    "<|start_header_id|>",
                    "<|end_header_id|>",
                    "<|eom_id|>",
                    "<|eot_id|>",
                    "<|python_tag|>",
                ]);
                names.extend((3..248).map(|i| format!("<|reserved_special_token_{i}|>")));
                counted(names)
            }
            Self::Glm4 => counted(owned(&[
                "<|endoftext|>",
                "[MASK]",
                "[gMASK]",
                "[sMASK]",
                "<sop>",
                "<eop>",
                "<|system|>",
                "<|user|>",
                "<|assistant|>",
                "<|observation|>",
                "<|begin_of_image|>",
                "<|end_of_image|>",
                "<|begin_of_video|>",
                "<|end_of_video|>",
            ])),
        }
    }

    /// Names of the tokens before a text.
    fn before(self) -> &'static [&'static str] {
        match self {
            Self::Llama3 => &["<|begin_of_text|>"],
            Self::Glm4 => &["[gMASK]", "<sop>"],
            _ => &[],
        }
    }
}

impl Tokenizer {
    /// Reads a tiktoken file. Its pattern and special tokens are those of `kind`, which follows
    /// from the number of ranks if it is `None`.
    ///
    /// # Errors
    /// The text is not in tiktoken's format, lacks a byte, repeats a rank, or has a number of ranks
    /// that no known vocabulary has.
    pub fn from_tiktoken(text: &str, kind: Option<TiktokenKind>) -> Result<Self> {
        let fail = |reason: String| Error::Import { kind: KIND, path: None, reason };
        let tokens = parse(text).map_err(fail)?;
        let kind = kind.or_else(|| TiktokenKind::by_ranks(tokens.len())).ok_or_else(|| {
            fail(format!(
                "{} ranks, expected the number of a known vocabulary (50256, 50280, 100256, \
                 199998, 151643, 128000 or 151329)",
                tokens.len()
            ))
        })?;
        let first = tokens.iter().map(|&(_, rank)| rank + 1).max().unwrap_or(0);
        let special = kind.special(first);
        let id = |name: &&str| special.iter().find(|(other, _)| other == name).cloned();
        let before = kind.before().iter().filter_map(id).collect();
        let frame = Template { before, after: Vec::new(), repeat_before: true };
        from_ranks(KIND, &tokens, special, &[kind.pattern()], frame)
    }
}

/// A byte-level tokenizer from tokens and their ranks, which are their ids too.
pub(super) fn from_ranks(
    kind: &'static str,
    tokens: &[(Vec<u8>, u32)],
    special: Vec<(String, u32)>,
    split: &[&str],
    frame: Template,
) -> Result<Tokenizer> {
    let fail = |reason: String| Error::Import { kind, path: None, reason };
    let largest = tokens.iter().map(|&(_, rank)| rank).max().unwrap_or(0) as usize;
    check_size(tokens.len(), largest + 1).map_err(|error| fail(error.to_string()))?;
    let texts: Vec<String> = tokens.iter().map(|(bytes, _)| byte_level_text(bytes)).collect();
    let ranked: Vec<Ranked<'_>> = texts
        .iter()
        .zip(tokens)
        .map(|(text, &(_, rank))| Ranked { text, rank: rank as usize })
        .collect();
    let merges = merges_by_rank(&ranked).map_err(fail)?;
    drop(ranked);
    let ids = tokens.iter().map(|&(_, rank)| rank).chain(special.iter().map(|&(_, id)| id));
    let names = texts.into_iter().chain(special.iter().map(|(name, _)| name.clone()));
    let mut model = model(names.zip(ids), merges).map_err(fail)?;
    // tiktoken does not split a word that is a token.
    model.ignore_merges = true;
    let added = special.into_iter().map(|(name, id)| Added::new(id, name, true)).collect();
    Assembly {
        model: model.into(),
        normalizer: serde_json::Value::Null,
        pre_tokenizer: byte_level_splits(split),
        decoder: byte_level_decoder(),
        frame,
        added,
        ids: SpecialIds::default(),
    }
    .build(kind)
}

/// The tokens and ranks of the lines, all 256 bytes among them, each rank once.
fn parse(text: &str) -> std::result::Result<Vec<(Vec<u8>, u32)>, String> {
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let bad = |what: &str| format!("line {}: {what}, found {:?}", index + 1, head(line));
        let (token, rank) =
            line.split_once(' ').ok_or_else(|| bad("expected a token and its rank"))?;
        let token = STANDARD.decode(token).map_err(|_| bad("expected a token in base64"))?;
        let rank = rank.trim_end().parse().map_err(|_| bad("expected a rank after the token"))?;
        if token.is_empty() {
            return Err(bad("expected a token of at least one byte"));
        }
        tokens.push((token, rank));
    }
    check_ranks(&tokens)?;
    Ok(tokens)
}

fn head(line: &str) -> String {
    line.chars().take(40).collect()
}

/// Refuses repeated ranks and tokens, and vocabularies that cannot express every text.
pub(super) fn check_ranks(tokens: &[(Vec<u8>, u32)]) -> std::result::Result<(), String> {
    let mut ranks: Vec<u32> = tokens.iter().map(|&(_, rank)| rank).collect();
    ranks.sort_unstable();
    if let Some(pair) = ranks.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("rank {} stands twice", pair[0]));
    }
    if ranks.last().is_some_and(|&rank| rank > 1 << 30) {
        return Err(format!("rank {} is out of all proportion", ranks[ranks.len() - 1]));
    }
    let mut texts: Vec<&[u8]> = tokens.iter().map(|(token, _)| token.as_slice()).collect();
    texts.sort_unstable();
    if let Some(pair) = texts.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("token {:?} stands twice", String::from_utf8_lossy(pair[0])));
    }
    match (0..=255_u8).find(|byte| texts.binary_search(&&[*byte][..]).is_err()) {
        Some(byte) => Err(format!("no token for byte {byte:#04X}")),
        None => Ok(()),
    }
}
