//! The SentencePiece tokenizers of the ChatGLM family. (GLM-4's has tiktoken's format.)

use serde_json::Value;

use super::assemble::{Added, Template, replace};
use super::sentencepiece::{Around, Model};
use crate::{Error, Result, Tokenizer};

const KIND: &str = "ChatGLM's SentencePiece";

/// Runs of spaces that have a token of their own in the first ChatGLM.
const BLANKS: std::ops::RangeInclusive<usize> = 2..=80;

/// A generation of ChatGLM whose tokenizer is a SentencePiece model with rules around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChatGlm {
    /// ChatGLM-6B (`ice_text.model`): line breaks, tabs and runs of spaces are tokens; `[gMASK]
    /// <sop>` follow the prompt.
    V1,
    /// ChatGLM2-6B: five special tokens after the pieces; `[gMASK] sop` precede the text.
    V2,
    /// ChatGLM3-6B: like the second, with tokens for roles.
    V3,
}

impl Tokenizer {
    /// Reads the SentencePiece model of a ChatGLM. Its special tokens, including those of roles,
    /// never come from text.
    ///
    /// # Errors
    /// The bytes are not a SentencePiece model, or lack the special tokens of the first ChatGLM.
    pub fn from_chatglm(bytes: &[u8], version: ChatGlm) -> Result<Self> {
        let fail = |reason: String| Error::Import { kind: KIND, path: None, reason };
        let model = Model::parse(bytes).map_err(fail)?;
        let around = match version {
            ChatGlm::V1 => first(&model).map_err(fail)?,
            ChatGlm::V2 => later(&model, &["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]),
            ChatGlm::V3 => later(
                &model,
                &[
                    "[MASK]",
                    "[gMASK]",
                    "[sMASK]",
                    "sop",
                    "eop",
                    "<|system|>",
                    "<|user|>",
                    "<|assistant|>",
                    "<|observation|>",
                ],
            ),
        };
        model.build(KIND, around)
    }
}

/// Whether a SentencePiece model is that of the first ChatGLM.
pub(super) fn is_first(model: &Model) -> bool {
    model.find("<|blank_2|>").is_some() && model.find("[gMASK]").is_some()
}

fn first(model: &Model) -> std::result::Result<Around, String> {
    let blanks = BLANKS.rev().map(|count| (" ".repeat(count), format!("<|blank_{count}|>")));
    let rules: Vec<(String, String)> = [("\n", "<n>"), ("\t", "<|tab|>")]
        .map(|(from, to)| (from.to_owned(), to.to_owned()))
        .into_iter()
        .chain(blanks)
        .collect();
    let normalizers: Vec<Value> = rules.iter().map(|(from, to)| replace(from, to)).collect();
    let decoders = rules.iter().map(|(from, to)| replace(to, from)).collect();
    let special = |name: &str| {
        let id = model.find(name).ok_or_else(|| format!("it has no piece {name}"))?;
        Ok::<_, String>(Added::new(id, name, true))
    };
    let names = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"];
    let added = names.into_iter().map(special).collect::<std::result::Result<Vec<_>, _>>()?;
    let after = [&added[1], &added[3]].map(|token| (token.name.clone(), token.id)).to_vec();
    let frame = Template { before: Vec::new(), after, repeat_before: false };
    Ok(Around { normalizers, decoders, added, frame })
}

fn later(model: &Model, names: &[&str]) -> Around {
    let start = u32::try_from(model.pieces.len()).unwrap_or(u32::MAX);
    let added: Vec<Added> =
        (start..).zip(names).map(|(id, name)| Added::new(id, *name, true)).collect();
    let before = [&added[1], &added[3]].map(|token| (token.name.clone(), token.id)).to_vec();
    let frame = Template { before, after: Vec::new(), repeat_before: false };
    Around { added, frame, ..Around::default() }
}
