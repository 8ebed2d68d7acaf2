//! Vocabularies inside GGUF files, from their parts.

use serde_json::{Value, json};

use super::assemble::{
    Added, Assembly, Template, byte_level_decoder, byte_level_splits, replace, sequence,
};
use super::sentencepiece::{Around, Method, Model, Piece};
use super::token_type::TokenType;
use super::{bpe, patterns, wordpiece};
use crate::keys::not_used;
use crate::{Error, Result, SpecialIds, Tokenizer};

const KIND: &str = "GGUF vocabulary";

/// The parts of a vocabulary under `tokenizer.ggml` in a GGUF file. A missing part is `None`, and
/// the kind of the vocabulary decides.
#[derive(Debug, Clone, Default)]
pub struct VocabParts {
    /// `model`: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `t5` (SentencePiece Unigram),
    /// `bert` (WordPiece) or `gemma4`.
    pub model: String,
    /// `pre`: how text is cut into words.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `scores`, by id; empty if the kind has none.
    pub scores: Vec<f32>,
    /// `token_type`, by id; may be empty.
    pub token_types: Vec<TokenType>,
    /// `merges`: two tokens with a space between, best first.
    pub merges: Vec<String>,
    /// `bos_token_id` and the other ids.
    pub special_ids: SpecialIds,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_sep_token`.
    pub add_sep: Option<bool>,
    /// `add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `remove_extra_whitespaces`.
    pub remove_extra_whitespaces: Option<bool>,
    /// `precompiled_charsmap`.
    pub precompiled_charsmap: Vec<u8>,
    /// `normalizer.lowercase`, of WordPiece.
    pub lowercase: Option<bool>,
    /// `normalizer.strip_accents`, of WordPiece.
    pub strip_accents: Option<bool>,
}

impl VocabParts {
    /// Builds the tokenizer that these parts describe.
    ///
    /// # Errors
    /// The kind or the pre-tokeniser is unknown, lists differ in length, or an id is outside.
    pub fn build(self) -> Result<Tokenizer> {
        self.check().map_err(fail)?;
        let warnings = self.warnings();
        let tokenizer = match self.model.as_str() {
            "gpt2" => self.byte_level(),
            "llama" => self.sentencepiece(Method::Bpe),
            "t5" => self.sentencepiece(Method::Unigram),
            "bert" => self.wordpiece(),
            "gemma4" => self.merged_characters(),
            other => Err(fail(format!(
                "tokenizer.ggml.model is {other:?}, expected gpt2, llama, t5, bert or gemma4"
            ))),
        };
        Ok(tokenizer?.with_warnings(warnings))
    }

    /// Returns what the file leaves open, and what it says that this kind of vocabulary does not
    /// use.
    fn warnings(&self) -> Vec<String> {
        let kind = self.model.as_str();
        let mut all = Vec::new();
        if kind == "gpt2"
            && self.pre.as_deref().is_none_or(|pre| pre.is_empty() || pre == "default")
        {
            all.push(
                "GGUF metadata: tokenizer.ggml.pre is missing, so text is cut into words as by \
                 llama.cpp's default; if the model was trained with another cut, its answers are \
                 worse"
                    .to_owned(),
            );
        }
        let is = |kinds: &[&str]| kinds.contains(&kind);
        let unused: Vec<String> = [
            ("add_bos_token", self.add_bos == Some(false) && is(&["bert"])),
            ("add_eos_token", self.add_eos == Some(false) && is(&["bert"])),
            ("add_sep_token", self.add_sep == Some(!is(&["bert"]))),
            ("add_space_prefix", self.add_space_prefix == Some(true) && !is(&["llama", "t5"])),
            (
                "remove_extra_whitespaces",
                self.remove_extra_whitespaces == Some(true) && !is(&["t5"]),
            ),
            ("precompiled_charsmap", !self.precompiled_charsmap.is_empty() && !is(&["t5"])),
            ("normalizer.lowercase", self.lowercase == Some(true) && !is(&["bert"])),
            ("normalizer.strip_accents", self.strip_accents == Some(true) && !is(&["bert"])),
        ]
        .into_iter()
        .filter(|(_, is_unused)| *is_unused)
        .map(|(key, _)| format!("tokenizer.ggml.{key}"))
        .collect();
        all.extend(not_used(&format!("GGUF vocabulary of the kind {kind}"), &unused));
        all
    }

    fn check(&self) -> std::result::Result<(), String> {
        let count = self.tokens.len();
        if count == 0 {
            return Err("it has no tokens".to_owned());
        }
        for (name, length) in
            [("scores", self.scores.len()), ("token_type", self.token_types.len())]
        {
            if length != 0 && length != count {
                return Err(format!("{count} tokens and {length} of {name}"));
            }
        }
        if let Some(score) = self.scores.iter().find(|score| !score.is_finite()) {
            return Err(format!("a score is {score}"));
        }
        let s = self.special_ids;
        for id in [s.bos, s.eos, s.unk, s.sep, s.pad, s.cls, s.mask, s.eot].into_iter().flatten() {
            if id as usize >= count {
                return Err(format!("a special token has id {id} of {count}"));
            }
        }
        Ok(())
    }

    fn kind(&self, id: usize) -> TokenType {
        self.token_types.get(id).copied().unwrap_or_default()
    }

    fn named(&self, id: Option<u32>) -> Vec<(String, u32)> {
        let name = |id: u32| self.tokens.get(id as usize).map(|name| (name.clone(), id));
        id.and_then(name).into_iter().collect()
    }

    /// Returns the begin and end tokens around a text. These vocabularies add them unless the file
    /// says otherwise.
    fn frame(&self, add_bos: bool, add_eos: bool) -> Template {
        let given = |wanted: bool, id| if wanted { self.named(id) } else { Vec::new() };
        Template {
            before: given(self.add_bos.unwrap_or(add_bos), self.special_ids.bos),
            after: given(self.add_eos.unwrap_or(add_eos), self.special_ids.eos),
            repeat_before: true,
        }
    }

    fn added(&self) -> Vec<Added> {
        (0..)
            .zip(&self.tokens)
            .filter_map(|(id, name)| {
                let special = match self.kind(id as usize) {
                    TokenType::Control | TokenType::Unknown => true,
                    TokenType::UserDefined => false,
                    _ => return None,
                };
                Some(Added::new(id, name.as_str(), special))
            })
            .collect()
    }

    fn merges(&self) -> std::result::Result<Vec<(String, String)>, String> {
        if self.merges.is_empty() {
            return Err("it has no merges".to_owned());
        }
        let pair = |line: &String| {
            // A token may itself be a space, or begin with one.
            let first = line.chars().next()?.len_utf8();
            let at = first + line.get(first..)?.find(' ')?;
            Some((line[..at].to_owned(), line[at + 1..].to_owned()))
        };
        let bad = |line: &String| format!("the merge {line:?} has no two tokens");
        self.merges.iter().map(|line| pair(line).ok_or_else(|| bad(line))).collect()
    }

    fn byte_level(self) -> Result<Tokenizer> {
        let pre = self.pre.as_deref().unwrap_or_default();
        let splitting = patterns::by_name(pre).ok_or_else(|| {
            fail(format!("tokenizer.ggml.pre is {pre:?}, which is none of the known"))
        })?;
        let frame = self.frame(splitting.add_bos, false);
        let added = self.added();
        let merges = self.merges().map_err(fail)?;
        let vocab = self.tokens.into_iter().zip(0..);
        let mut model = bpe::model(vocab, merges).map_err(fail)?;
        model.ignore_merges = splitting.ignore_merges;
        Assembly {
            model: model.into(),
            normalizer: Value::Null,
            pre_tokenizer: byte_level_splits(splitting.patterns),
            decoder: byte_level_decoder(),
            frame,
            added,
            ids: self.special_ids,
        }
        .build(KIND)
    }

    /// Gemma 4: merges over whole texts of characters, spaces as `▁`, bytes as `<0xAB>`.
    fn merged_characters(self) -> Result<Tokenizer> {
        let frame = self.frame(true, false);
        let added = self.added();
        let merges = self.merges().map_err(fail)?;
        let unk = self.named(self.special_ids.unk).pop().map(|(name, _)| name);
        let mut model = bpe::model(self.tokens.into_iter().zip(0..), merges).map_err(fail)?;
        model.unk_token = unk;
        model.fuse_unk = true;
        model.byte_fallback = true;
        let decoders =
            vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        Assembly {
            model: model.into(),
            normalizer: replace(" ", "▁"),
            pre_tokenizer: Value::Null,
            decoder: sequence("decoders", decoders),
            frame,
            added,
            ids: self.special_ids,
        }
        .build(KIND)
    }

    fn sentencepiece(self, method: Method) -> Result<Tokenizer> {
        if self.scores.is_empty() {
            return Err(fail("it has no scores".to_owned()));
        }
        let unigram = method == Method::Unigram;
        let mut ids = self.special_ids;
        if !unigram {
            // llama.cpp's defaults for these tokens.
            let usual = SpecialIds { unk: Some(0), bos: Some(1), eos: Some(2), ..ids };
            ids = if self.tokens.len() > 2 { ids.or(usual) } else { ids };
        }
        let parts = Self { special_ids: ids, ..self };
        let frame = parts.frame(!unigram, unigram);
        let kinds: Vec<TokenType> = (0..parts.tokens.len()).map(|id| parts.kind(id)).collect();
        let pieces = parts.tokens.into_iter().zip(parts.scores).zip(kinds);
        let model = Model {
            method,
            pieces: pieces.map(|((text, score), kind)| piece(text, score, kind)).collect(),
            ids,
            charsmap: if unigram { parts.precompiled_charsmap } else { Vec::new() },
            add_dummy_prefix: parts.add_space_prefix.unwrap_or(true),
            // SentencePiece BPE vocabularies in GGUF keep all spaces.
            remove_extra_whitespaces: unigram && parts.remove_extra_whitespaces.unwrap_or(false),
            warnings: Vec::new(),
        };
        model.build(KIND, Around { frame, ..Around::default() })
    }

    /// GGUF marks the beginnings of words with `▁` where BERT marks their continuations with `##`.
    fn wordpiece(self) -> Result<Tokenizer> {
        let count = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        let usual = |id: u32| Some(id).filter(|&id| id < count);
        let ids = self.special_ids.or(SpecialIds {
            cls: usual(101),
            unk: usual(100),
            sep: usual(102),
            pad: usual(0),
            mask: usual(103),
            ..SpecialIds::default()
        });
        let special = [ids.cls, ids.unk, ids.sep, ids.pad, ids.mask];
        let words = (0..).zip(&self.tokens).map(|(id, token)| {
            if self.kind(id as usize) == TokenType::Control || special.contains(&Some(id)) {
                return token.clone();
            }
            match token.strip_prefix('▁') {
                Some(word) if !word.is_empty() => word.to_owned(),
                _ => format!("##{token}"),
            }
        });
        let lowercase = self.lowercase.unwrap_or(true);
        let rules = wordpiece::Rules {
            lowercase,
            strip_accents: self.strip_accents,
            chinese_characters: true,
        };
        wordpiece::from_words(KIND, words.collect(), ids, &rules)
    }
}

/// Builds a SentencePiece piece. GGUF writes user-defined symbols with plain spaces.
fn piece(text: String, score: f32, kind: TokenType) -> Piece {
    let text = if kind == TokenType::UserDefined { text.replace(' ', "▁") } else { text };
    Piece { text, score, kind }
}

fn fail(reason: String) -> Error {
    Error::Import { kind: KIND, path: None, reason }
}
