//! Encoding of a rendered text, as Hugging Face's library encodes the whole text.

use std::collections::HashMap;

use tokenizers::pre_tokenizer::PreTokenizedString;
use tokenizers::tokenizer::normalizer::Range;
use tokenizers::{
    AddedToken, Model as _, NormalizedString, Normalizer as _, OffsetType, PreTokenizer as _, Token,
};

use super::guard::Marked;
use super::kind::Kind;
use crate::{Error, Result, Tokenizer};

/// Search for the added tokens of a tokenizer in text.
///
/// It matches `AddedVocabulary` of the `tokenizers` crate, with one difference: a token that is not
/// a word counts only where [`Marked::allows`] permits it.
pub(super) struct AddedTokens {
    /// Tokens to find in the raw text, by first byte, longest first.
    raw: Matcher,
    /// Tokens to find in the normalised text.
    normalized: Matcher,
}

type Matcher = HashMap<u8, Vec<Added>>;

struct Added {
    content: String,
    id: u32,
    kind: Kind,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
}

impl AddedTokens {
    pub(super) fn new(tokenizer: &Tokenizer, kind: impl Fn(&AddedToken) -> Kind) -> Result<Self> {
        let hf = tokenizer.hf();
        let (mut raw, mut normalized) = (Matcher::new(), Matcher::new());
        for (&id, token) in hf.get_added_vocabulary().get_added_tokens_decoder() {
            let mut content = token.content.clone();
            if let (true, Some(normalizer)) = (token.normalized, hf.get_normalizer()) {
                let mut text = NormalizedString::from(content.as_str());
                normalizer.normalize(&mut text).map_err(|error| fault(&content, &*error))?;
                content = text.get().to_owned();
            }
            let Some(&first) = content.as_bytes().first() else { continue };
            let matcher = if token.normalized { &mut normalized } else { &mut raw };
            let &AddedToken { single_word, lstrip, rstrip, .. } = token;
            matcher.entry(first).or_default().push(Added {
                content,
                id,
                kind: kind(token),
                single_word,
                lstrip,
                rstrip,
            });
        }
        for tokens in raw.values_mut().chain(normalized.values_mut()) {
            tokens.sort_by_key(|token| std::cmp::Reverse(token.content.len()));
        }
        Ok(Self { raw, normalized })
    }

    /// The ids of a text, each with its place in it: byte offsets.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        marked: &Marked,
    ) -> Result<Vec<(u32, (usize, usize))>> {
        let hf = tokenizer.hf();
        let encode = || {
            let mut pieces = PreTokenizedString::from(marked.text.as_str());
            pieces.split(|_, piece| Ok(split(&self.raw, &piece, marked)))?;
            pieces.split(|_, mut piece| {
                if let Some(normalizer) = hf.get_normalizer() {
                    normalizer.normalize(&mut piece)?;
                }
                Ok(split(&self.normalized, &piece, marked))
            })?;
            if let Some(pre_tokenizer) = hf.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            pieces.tokenize(|piece| hf.get_model().tokenize(piece.get()))?;
            pieces.into_encoding(None, 0, OffsetType::Byte)
        };
        let encoding = encode().map_err(|error: tokenizers::Error| fault(&marked.text, &*error))?;
        Ok(encoding.get_ids().iter().copied().zip(encoding.get_offsets().iter().copied()).collect())
    }

    /// The control tokens of a text, in order, each with its place: byte offsets.
    pub(super) fn specials(&self, marked: &Marked) -> Vec<(u32, (usize, usize))> {
        let mut found = Vec::new();
        for matcher in [&self.raw, &self.normalized] {
            let places = places(matcher, &marked.text, |start, end| marked.allows(start, end));
            found.extend(
                places
                    .into_iter()
                    .filter(|(token, _)| token.kind == Kind::Control)
                    .map(|(token, place)| (token.id, place)),
            );
        }
        found.sort_by_key(|(_, place)| *place);
        found
    }
}

fn fault(text: &str, error: &dyn std::error::Error) -> Error {
    Error::Encode { start: text.chars().take(40).collect(), reason: error.to_string() }
}

type Split = (NormalizedString, Option<Vec<Token>>);

fn split(matcher: &Matcher, piece: &NormalizedString, marked: &Marked) -> Vec<Split> {
    let text = piece.get();
    let origin = piece.offsets_original().0;
    let allows = |start: usize, end: usize| {
        let original = piece.convert_offsets(Range::Normalized(start..end)).unwrap_or(start..end);
        marked.allows(origin + original.start, origin + original.end)
    };
    let slice = |start: usize, end: usize| piece.slice(Range::Normalized(start..end));
    let (mut splits, mut done) = (Vec::new(), 0);
    for (token, (start, end)) in places(matcher, text, allows) {
        let start = if token.lstrip { text[..start].trim_end().len().max(done) } else { start };
        let end = if token.rstrip { text.len() - text[end..].trim_start().len() } else { end };
        if done < start {
            splits.extend(slice(done, start).map(|text| (text, None)));
        }
        let value = text[start..end].to_owned();
        let token = Token::new(token.id, value, (0, end - start));
        splits.extend(slice(start, end).map(|text| (text, Some(vec![token]))));
        done = end;
    }
    if done < text.len() {
        splits.extend(slice(done, text.len()).map(|text| (text, None)));
    }
    splits
}

/// Finds the added tokens in `text`: the leftmost, then the longest, then on after its end.
fn places<'m>(
    matcher: &'m Matcher,
    text: &str,
    allows: impl Fn(usize, usize) -> bool,
) -> Vec<(&'m Added, (usize, usize))> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let bytes = text.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let candidates = matcher.get(&bytes[at]).map_or(&[][..], Vec::as_slice);
        let Some(token) =
            candidates.iter().find(|token| bytes[at..].starts_with(token.content.as_bytes()))
        else {
            at += 1;
            continue;
        };
        let end = at + token.content.len();
        let is_within_word = token.single_word
            && (text[..at].ends_with(is_word) || text[end..].starts_with(is_word));
        if !is_within_word && (token.kind == Kind::Word || allows(at, end)) {
            found.push((token, (at, end)));
            at = end;
            continue;
        }
        // Skips refused text as a whole, as the plain encoder does, but not the template's text
        // after it.
        let is_template = |&start: &usize| {
            let candidates = matcher.get(&bytes[start]).map_or(&[][..], Vec::as_slice);
            let mut here = candidates
                .iter()
                .filter(|token| bytes[start..].starts_with(token.content.as_bytes()));
            here.any(|token| token.kind != Kind::Word && allows(start, start + token.content.len()))
        };
        at = (at + 1..end).find(is_template).unwrap_or(end);
    }
    found
}
