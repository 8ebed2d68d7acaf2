//! Long texts in pieces, so that memory does not grow with a text's length.

use tokenizers::Tokenizer as HfTokenizer;

use crate::encode::encode;
use crate::{Result, Tokenizer};

/// Bytes of a text that are encoded at a time. The library keeps about 140 bytes per byte of text
/// until a text is done.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// Bytes after a cut on which the encodings of both sides must agree.
const OVERLAP_BYTES: usize = 4 << 10;
/// Number of places at which a cut is tried.
const CUTS_TRIED: usize = 16;

/// Cuts a text into pieces of at most `most` bytes, where possible before a space between two
/// words, and never within a character.
pub(crate) fn pieces(text: &str, most: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.floor_char_boundary(most).max(rest.ceil_char_boundary(1));
        let cut = match end < rest.len() {
            true => word_borders(rest, most / 2, end).last().unwrap_or(end),
            false => end,
        };
        let (piece, after) = rest.split_at(cut);
        rest = after;
        Some(piece)
    })
}

/// Iterates over the single spaces between two words in `from..to`. Every word pattern in use
/// begins a word there.
fn word_borders(text: &str, from: usize, to: usize) -> impl DoubleEndedIterator<Item = usize> {
    let bytes = text.as_bytes();
    let is_border = move |&at: &usize| {
        let is_space = |at: usize| bytes.get(at).is_none_or(u8::is_ascii_whitespace);
        bytes[at] == b' ' && !is_space(at - 1) && !is_space(at + 1)
    };
    (from.max(1)..to.min(bytes.len())).filter(is_border)
}

impl Tokenizer {
    /// Encodes a text piece by piece with `tokenizer`, which is [`plain`](Self::plain) or
    /// [`continuing`](Self::continuing). The ids are those of the whole text: a cut is kept only
    /// if the text up to some kilobytes after it encodes to the same ids with and without the cut.
    /// Where no cut passes, the rest is encoded as a whole.
    pub(crate) fn encode_long(&self, tokenizer: &HfTokenizer, text: &str) -> Result<Vec<u32>> {
        self.encode_in_pieces(tokenizer, text, PIECE_BYTES)
    }

    fn encode_in_pieces(
        &self,
        tokenizer: &HfTokenizer,
        text: &str,
        piece_bytes: usize,
    ) -> Result<Vec<u32>> {
        let (mut ids, mut rest, mut tokenizer) = (Vec::new(), text, tokenizer);
        while rest.len() > piece_bytes + OVERLAP_BYTES
            && let Some((head, after)) = self.encode_head(tokenizer, rest, piece_bytes)?
        {
            ids.extend(head);
            (rest, tokenizer) = (after, self.continuing());
        }
        ids.extend(encode(tokenizer, rest, false)?);
        Ok(ids)
    }

    /// Returns the ids of the first `piece_bytes` or so of `text`, and the text after them.
    fn encode_head<'t>(
        &self,
        tokenizer: &HfTokenizer,
        text: &'t str,
        piece_bytes: usize,
    ) -> Result<Option<(Vec<u32>, &'t str)>> {
        let end = text.floor_char_boundary(piece_bytes + OVERLAP_BYTES);
        let mut ids = encode(tokenizer, &text[..end], false)?;
        let from = piece_bytes - OVERLAP_BYTES;
        // A text without spaces may be cut anywhere within a long word, if the ids agree. A model
        // that gives up long words as unknown has no such place.
        let anywhere = (from..end).filter(|&at| text.is_char_boundary(at) && self.is_bpe());
        let cuts = word_borders(text, from, piece_bytes).take(CUTS_TRIED);
        for cut in cuts.chain(anywhere.take(CUTS_TRIED)) {
            let after = encode(self.continuing(), &text[cut..end], false)?;
            if !after.is_empty() && ids.ends_with(&after) {
                ids.truncate(ids.len() - after.len());
                return Ok(Some((ids, &text[cut..])));
            }
        }
        Ok(None)
    }

    fn is_bpe(&self) -> bool {
        matches!(self.plain().get_model(), tokenizers::ModelWrapper::BPE(_))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::{Pattern, Trainer};

    #[test]
    fn pieces_end_between_words_and_join_to_the_text() {
        let text = "one two  three four 五六七八九十 five";
        for most in 1..text.len() + 2 {
            let parts: Vec<&str> = pieces(text, most).collect();
            assert_eq!(parts.concat(), text);
            assert!(parts.iter().all(|part| part.len() <= most.max(4)), "{parts:?}");
        }
        assert_eq!(pieces("one two three", 9).collect::<Vec<_>>(), ["one two", " three"]);
        assert_eq!(pieces("", 9).count(), 0);
    }

    #[test]
    fn a_long_text_encodes_as_the_library_encodes_it() {
        let sentence = "The cat sees 1234 birds,\n\n  and then  好的。it's 'fine' -- été 😀 ";
        let dna = |n: u64| -> String {
            let mixed = |i: u64| i.wrapping_mul(i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            (0..n).map(|i| char::from(b"ACGT"[mixed(i) as usize % 4])).collect()
        };
        let corpus = [sentence.repeat(3), dna(2000)];
        let piece = 3 * OVERLAP_BYTES;
        let n = piece / sentence.len() * 3;
        let texts = [
            sentence.repeat(n),
            dna(piece as u64 * 3),
            "a".repeat(piece * 2 + 77),
            " ".repeat(piece + 9000),
            "1234567".repeat(piece / 3),
            format!("{}{}", dna(piece as u64), sentence.repeat(n / 2)),
        ];
        for pattern in [Pattern::Gpt2, Pattern::Gpt4] {
            let tokenizer = Trainer { pattern, ..Trainer::new(400) }.train(&corpus).unwrap();
            let hf = tokenizer.plain();
            for text in &texts {
                let whole = encode(hf, text, false).unwrap();
                let pieces = tokenizer.encode_in_pieces(hf, text, piece).unwrap();
                assert!(whole == pieces, "{pattern:?} {}", &text[..20]);
                let (_, rest) = tokenizer.encode_head(hf, text, piece).unwrap().unwrap();
                assert!(rest.len() < text.len(), "the text was cut");
            }
        }
    }
}
