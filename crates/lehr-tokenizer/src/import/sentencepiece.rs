//! SentencePiece models: Unigram and BPE, from their files or from parts.
//!
//! Source of the fields:
//! <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>.

use serde_json::{Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::models::unigram::Unigram;

use super::assemble::{Added, Assembly, Template, replace, sequence, split};
use super::bpe::{Ranked, merges_by_rank, model};
use super::protobuf::Fields;
use super::token_type::TokenType;
use crate::check::charsmap;
use crate::keys::not_used;
use crate::{Error, Result, SpecialIds, Tokenizer};

pub(super) const KIND: &str = "SentencePiece";

/// How SentencePiece writes a space.
const SPACE: char = '▁';

/// A piece of the vocabulary. Its id is its index.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: TokenType,
}

/// Method that cuts a text into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// The most probable pieces.
    Unigram,
    /// Merges neighbouring pairs, the pair with the best score first.
    Bpe,
}

/// A SentencePiece model.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) method: Method,
    pub(super) pieces: Vec<Piece>,
    pub(super) ids: SpecialIds,
    pub(super) charsmap: Vec<u8>,
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    /// What the file says that is not used.
    pub(super) warnings: Vec<String>,
}

/// Additions of a family to the model.
#[derive(Debug, Default)]
pub(super) struct Around {
    /// Before all other normalisation.
    pub(super) normalizers: Vec<Value>,
    /// Before all other decoding.
    pub(super) decoders: Vec<Value>,
    /// Tokens besides the pieces, or pieces that are special whatever their type.
    pub(super) added: Vec<Added>,
    pub(super) frame: Template,
}

impl Model {
    /// Reads a `.model` file.
    pub(super) fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut model = Self {
            method: Method::Unigram,
            pieces: Vec::new(),
            ids: SpecialIds::default(),
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            warnings: Vec::new(),
        };
        let mut unused = Vec::new();
        let mut special = [0_i64, 1, 2, -1];
        for field in Fields::of(bytes) {
            match field? {
                (1, value) => model.pieces.push(piece(value.bytes()?)?),
                (2, value) => model.training(value.bytes()?, &mut special, &mut unused)?,
                (3, value) => model.normalization(value.bytes()?, &mut unused)?,
                // Samples for a test of the library.
                (4, _) => {}
                (5, value) => denormalization(value.bytes()?, &mut unused)?,
                (number, _) => unused.push(format!("field {number}")),
            }
        }
        unused.sort();
        unused.dedup();
        model.warnings.extend(not_used("the SentencePiece model", &unused));
        if model.pieces.is_empty() {
            return Err("no pieces".to_owned());
        }
        let [unk, bos, eos, pad] = special
            .map(|id| u32::try_from(id).ok().filter(|&id| (id as usize) < model.pieces.len()));
        model.ids = SpecialIds { unk, bos, eos, pad, ..SpecialIds::default() };
        Ok(model)
    }

    fn training(
        &mut self,
        message: &[u8],
        special: &mut [i64; 4],
        unused: &mut Vec<String>,
    ) -> Outcome {
        for field in Fields::of(message) {
            match field? {
                (3, value) => {
                    self.method = match value.integer()? {
                        1 => Method::Unigram,
                        2 => Method::Bpe,
                        other => {
                            return Err(format!(
                                "a model of type {other}, expected 1 (Unigram) or 2 (BPE)"
                            ));
                        }
                    }
                }
                (24, value) if value.flag()? => {
                    return Err("spaces at the end of words (treat_whitespace_as_suffix)".into());
                }
                (number @ 40..=43, value) => {
                    // Ids are 32 bits wide and may be -1.
                    let slot = usize::try_from(number - 40).unwrap_or(0);
                    special[slot] = value.integer()?;
                }
                // Settings of the training, whose result the pieces are.
                (1..=54, _) => {}
                (number, _) => unused.push(format!("trainer_spec.{number}")),
            }
        }
        Ok(())
    }

    fn normalization(&mut self, message: &[u8], unused: &mut Vec<String>) -> Outcome {
        for field in Fields::of(message) {
            match field? {
                (2, value) => self.charsmap = value.bytes()?.to_vec(),
                (3, value) => self.add_dummy_prefix = value.flag()?,
                (4, value) => self.remove_extra_whitespaces = value.flag()?,
                (5, value) if !value.flag()? => {
                    return Err("spaces that are not escaped (escape_whitespaces)".into());
                }
                // The name of the rules, and their text, from which the map was compiled.
                (1 | 5 | 6, _) => {}
                (number, _) => unused.push(format!("normalizer_spec.{number}")),
            }
        }
        Ok(())
    }

    /// Whether there is a piece of this text.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        let at = self.pieces.iter().position(|piece| piece.text == text)?;
        u32::try_from(at).ok()
    }

    /// The name of a piece and its id.
    pub(super) fn named(&self, id: Option<u32>) -> Option<(String, u32)> {
        let id = id?;
        Some((self.pieces.get(id as usize)?.text.clone(), id))
    }

    /// The tokenizer: normalisation, pieces and decoding as SentencePiece has them.
    pub(super) fn build(self, kind: &'static str, around: Around) -> Result<Tokenizer> {
        let fail = |reason: String| Error::Import { kind, path: None, reason };
        let normalizer = self.normalizer(around.normalizers).map_err(fail)?;
        let added = self.added(around.added);
        let bytes = self.pieces.iter().any(|piece| piece.kind == TokenType::Byte);
        let mut decoders = around.decoders;
        decoders.push(replace("▁", " "));
        if bytes {
            decoders.push(json!({"type": "ByteFallback"}));
        }
        decoders.push(json!({"type": "Fuse"}));
        if self.add_dummy_prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let pre_tokenizer = self.pre_tokenizer();
        let ids = self.ids;
        let model = match self.method {
            Method::Unigram => self.unigram(bytes, &added),
            Method::Bpe => self.bpe(bytes, &added),
        };
        Assembly {
            model: model.map_err(fail)?,
            normalizer,
            pre_tokenizer,
            decoder: sequence("decoders", decoders),
            frame: around.frame,
            added,
            ids,
        }
        .build(kind)
    }

    fn normalizer(&self, mut members: Vec<Value>) -> std::result::Result<Value, String> {
        if !self.charsmap.is_empty() {
            charsmap(&self.charsmap)?;
            use base64::Engine;
            let map = base64::engine::general_purpose::STANDARD.encode(&self.charsmap);
            members.push(json!({"type": "Precompiled", "precompiled_charsmap": map}));
        }
        let regex = |pattern: &str, to: &str| {
            let pattern = json!({ "Regex": pattern });
            json!({"type": "Replace", "pattern": pattern, "content": to})
        };
        if self.remove_extra_whitespaces {
            // At the end, SentencePiece also treats its own space symbol as a space.
            members.push(regex(r"\A +|[ ▁]+\z", ""));
            members.push(regex(" {2,}", " "));
        }
        if self.add_dummy_prefix {
            members.push(json!({"type": "Prepend", "prepend": "▁"}));
        }
        members.push(replace(" ", "▁"));
        Ok(sequence("normalizers", members))
    }

    /// Splits into words if no piece spans two words. The ids are the same, and the library caches
    /// words. User-defined symbols of BPE models come first, longest first; see [`Self::bpe`].
    fn pre_tokenizer(&self) -> Value {
        let mut members = Vec::new();
        if self.symbols_are_words() {
            let mut symbols: Vec<&str> = self.symbols().map(|piece| piece.text.as_str()).collect();
            symbols.sort_by_key(|symbol| std::cmp::Reverse(symbol.len()));
            let escaped: Vec<String> = symbols.into_iter().map(escape).collect();
            members.push(split(&escaped.join("|")));
        }
        let crosses = |text: &str| text.trim_start_matches(SPACE).contains(SPACE);
        let whole = |piece: &Piece| {
            !matches!(piece.kind, TokenType::Normal | TokenType::UserDefined)
                || !crosses(&piece.text)
        };
        let space = self.pieces.iter().any(|p| p.text == "▁" && p.kind == TokenType::Normal);
        if space && self.pieces.iter().all(whole) {
            members.push(split("▁+[^▁]*|[^▁]+"));
        }
        sequence("pretokenizers", members)
    }

    fn symbols(&self) -> impl Iterator<Item = &Piece> {
        self.pieces
            .iter()
            .filter(|piece| piece.kind == TokenType::UserDefined && !piece.text.is_empty())
    }

    /// Whether user-defined symbols of a BPE model are cut out as words. If the text gets no
    /// leading space they are added tokens instead, which is faster. Otherwise the library would
    /// put a space after each of them.
    fn symbols_are_words(&self) -> bool {
        self.method == Method::Bpe && self.add_dummy_prefix && self.symbols().next().is_some()
    }

    /// Returns control pieces and the family's additions, and user-defined symbols if they are not
    /// words.
    fn added(&self, around: Vec<Added>) -> Vec<Added> {
        let symbols = self.method == Method::Bpe && !self.symbols_are_words();
        let mut added: Vec<Added> = (0..)
            .zip(&self.pieces)
            .filter_map(|(id, piece)| {
                let special = match piece.kind {
                    TokenType::Control | TokenType::Unknown => true,
                    TokenType::UserDefined if symbols => false,
                    _ => return None,
                };
                // SentencePiece finds symbols such as `▁▁` where spaces are written so already.
                let token = Added::new(id, piece.text.as_str(), special);
                Some(Added { normalized: !special, ..token })
            })
            .filter(|token| around.iter().all(|other| other.id != token.id))
            .collect();
        added.extend(around);
        added
    }

    /// User-defined symbols always win over the pieces inside them. Their score is that of
    /// SentencePiece: `length · best score − 0.1`.
    fn unigram(self, bytes: bool, added: &[Added]) -> std::result::Result<ModelWrapper, String> {
        let normal = |piece: &&Piece| piece.kind == TokenType::Normal;
        let best = self.pieces.iter().filter(normal).map(|p| p.score).fold(f32::MIN, f32::max);
        let worst = self.pieces.iter().filter(normal).map(|p| p.score).fold(f32::MAX, f32::min);
        let unk = self.pieces.iter().position(|piece| piece.kind == TokenType::Unknown);
        let unk = unk.or(self.ids.unk.map(|id| id as usize));
        let mut vocab: Vec<(String, f64)> = self
            .pieces
            .into_iter()
            .map(|piece| {
                let score = match piece.kind {
                    TokenType::UserDefined if best > f32::MIN => {
                        piece.text.len() as f32 * best - 0.1
                    }
                    TokenType::Unused if worst < f32::MAX => worst,
                    _ => piece.score,
                };
                (piece.text, f64::from(score))
            })
            .collect();
        for token in added
            .iter()
            .filter(|token| token.id as usize >= vocab.len())
            .cloned()
            .collect::<Vec<_>>()
        {
            if token.id as usize != vocab.len() {
                return Err(format!(
                    "token {:?} has id {} after {}",
                    token.name,
                    token.id,
                    vocab.len()
                ));
            }
            vocab.push((token.name, 0.0));
        }
        Unigram::from(vocab, unk, bytes).map(Into::into).map_err(|error| error.to_string())
    }

    /// A piece merges before one with a lower score, from any two pieces that form it. User-defined
    /// symbols are separate words and stay whole.
    fn bpe(self, bytes: bool, added: &[Added]) -> std::result::Result<ModelWrapper, String> {
        let mut order: Vec<usize> = (0..self.pieces.len())
            .filter(|&index| self.pieces[index].kind == TokenType::Normal)
            .collect();
        order.sort_by(|&a, &b| self.pieces[b].score.total_cmp(&self.pieces[a].score));
        let ranked: Vec<Ranked<'_>> = order
            .iter()
            .enumerate()
            .map(|(rank, &index)| Ranked { text: &self.pieces[index].text, rank })
            .collect();
        let merges = merges_by_rank(&ranked)?;
        let ignore_merges = self.symbols_are_words();
        let unk = self.named(self.ids.unk).map(|(name, _)| name);
        let vocab = self.pieces.into_iter().map(|piece| piece.text).zip(0..);
        let vocab = vocab.chain(added.iter().map(|token| (token.name.clone(), token.id)));
        let mut model = model(vocab, merges)?;
        model.unk_token = unk;
        model.fuse_unk = true;
        model.byte_fallback = bytes;
        model.ignore_merges = ignore_merges;
        Ok(model.into())
    }
}

type Outcome = std::result::Result<(), String>;

/// Rules that SentencePiece applies to decoded text, which are not used.
fn denormalization(message: &[u8], unused: &mut Vec<String>) -> Outcome {
    for field in Fields::of(message) {
        if let (2, value) = field?
            && !value.bytes()?.is_empty()
        {
            unused.push("denormalizer_spec.precompiled_charsmap".to_owned());
        }
    }
    Ok(())
}

fn piece(message: &[u8]) -> std::result::Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: TokenType::Normal };
    for field in Fields::of(message) {
        match field? {
            (1, value) => piece.text = value.text()?.to_owned(),
            (2, value) => piece.score = value.float()?,
            (3, value) => {
                let kind = value.integer()?;
                piece.kind = i32::try_from(kind)
                    .ok()
                    .and_then(TokenType::from_number)
                    .ok_or_else(|| format!("a piece of type {kind}, expected 1 to 6"))?;
            }
            _ => {}
        }
    }
    Ok(piece)
}

/// Escapes `text` as a regular expression.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

impl Tokenizer {
    /// Reads a SentencePiece model. `encode_for_model` puts the begin token before a text (BPE
    /// models) or the end token after it (Unigram models), as the families that use them do.
    ///
    /// # Errors
    /// The bytes are not such a model, or it is of a type or has options that are not supported.
    pub fn from_sentencepiece(bytes: &[u8]) -> Result<Self> {
        let mut model = Model::parse(bytes).map_err(|reason| Error::Import {
            kind: KIND,
            path: None,
            reason,
        })?;
        let frame = model.usual_frame();
        let warnings = std::mem::take(&mut model.warnings);
        let tokenizer = model.build(KIND, Around { frame, ..Around::default() })?;
        Ok(tokenizer.with_warnings(warnings))
    }
}

impl Model {
    /// Returns the tokens that Llama and T5 put around a text.
    pub(super) fn usual_frame(&self) -> Template {
        let one = |id| self.named(id).into_iter().collect();
        match self.method {
            Method::Bpe => {
                Template { before: one(self.ids.bos), after: Vec::new(), repeat_before: true }
            }
            Method::Unigram => {
                Template { before: Vec::new(), after: one(self.ids.eos), repeat_before: true }
            }
        }
    }
}
