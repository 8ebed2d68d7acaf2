//! Texts whose first part is seen from everywhere: GLM-130B and ChatGLM-6B.
//!
//! Such a text is `context <sop> continuation`. The tokens before `<sop>` see one another in both
//! directions; `<sop>` and what follows see the context and what is before them. A mask token in
//! the context says what is asked for: `[MASK]` a piece that stands there, `[gMASK]` what comes
//! after the context.

use lehr_tensor::Tensor;
use lehr_tensor::ops::attention::Mask;

use super::Tokens;
use crate::prefix::Prefix;
use crate::{Error, KvCache, Result};

/// A token that says what is asked for.
pub(super) struct MaskToken {
    pub(super) name: &'static str,
    pub(super) id: u32,
    /// Whether `<sop>` and all that follows stand at the position of this token.
    pub(super) freezes: bool,
}

/// How a family's texts are divided.
pub(super) struct PrefixRule {
    /// Id of `<sop>`.
    pub(super) sop: u32,
    /// The first of these that the context contains counts.
    pub(super) masks: Vec<MaskToken>,
}

/// What the blocks need to know of their tokens.
pub(super) struct Division {
    pub(super) mask: Mask,
    /// Positions in the text, i32 `[B, T]`.
    pub(super) positions: Tensor,
    /// Positions in the continuation, i32 `[B, T]`.
    pub(super) block_positions: Tensor,
}

impl PrefixRule {
    /// Divides the tokens, or continues the division that the cache remembers. Every segment of a
    /// packed row is a text; a segment of one token without `<sop>` is padding.
    ///
    /// # Errors
    /// If a text has no `<sop>` or no mask token before it.
    pub(super) fn divide(&self, tokens: &Tokens, cache: Option<&mut KvCache>) -> Result<Division> {
        let (n_rows, t) = (tokens.batch(), tokens.len());
        let packed = tokens.segment_starts.is_some();
        let (positions, ids) = (tokens.positions.ids(), tokens.ids.ids());
        let continued = cache.as_ref().filter(|c| !c.is_empty()).map(|c| (c.len(), c.prefixes()));
        if let Some((_, known)) = continued.filter(|(_, known)| known.len() != n_rows) {
            return Err(Error::Prompt {
                reason: format!("{n_rows} rows continue the {} of the cache", known.len()),
                hint: "continue a cache with as many rows as it was begun with".to_owned(),
            });
        }
        let (mut texts, mut lengths, mut streams) = (Vec::new(), Vec::new(), [vec![], vec![]]);
        for row in 0..n_rows {
            for span in spans(tokens, row) {
                let at = row * t + span.start..row * t + span.end;
                let (first, text) = match continued {
                    Some((first, known)) => (first, known[row]),
                    None => {
                        (0, self.find(&ids[at.clone()], &positions[at.clone()], (row, packed))?)
                    }
                };
                for (i, position) in positions[at].iter().enumerate() {
                    let (a, b) = text.positions(first + i, *position);
                    streams[0].push(a);
                    streams[1].push(b);
                    lengths.push(text.len as i32);
                }
                texts.push(text);
            }
        }
        let mask = match &tokens.segment_starts {
            None => {
                let lengths: Vec<i32> = texts.iter().map(|text| text.len as i32).collect();
                Mask::causal().with_prefix(Tensor::from_ids(&lengths, [n_rows])?)
            }
            Some(starts) => Mask::causal()
                .with_segments(starts.clone())
                .with_prefix(Tensor::from_ids(&lengths, [n_rows, t])?),
        };
        if let Some(cache) = cache {
            cache.set_prefixes(texts);
        }
        let [a, b] = streams.map(|stream| Tensor::from_ids(&stream, [n_rows, t]));
        Ok(Division { mask, positions: a?, block_positions: b? })
    }

    /// How many of a text's first tokens have to be run together: the context and `<sop>`.
    ///
    /// # Errors
    /// As [`PrefixRule::divide`].
    pub(super) fn undivided(&self, ids: &[i32]) -> Result<usize> {
        let positions: Vec<i32> = (0..ids.len() as i32).collect();
        Ok(self.find(ids, &positions, (0, false))?.len + 1)
    }

    fn find(
        &self,
        ids: &[i32],
        positions: &[i32],
        (row, is_segment): (usize, bool),
    ) -> Result<Prefix> {
        let index_of =
            |ids: &[i32], id: u32| ids.iter().position(|i| i64::from(*i) == i64::from(id));
        let Some(len) = index_of(ids, self.sop) else {
            if is_segment && ids.len() == 1 {
                return Ok(Prefix { len: 0, start: positions[0], frozen: None });
            }
            let found = format!("row {row} has no <sop> (id {})", self.sop);
            return Err(self.error(&found));
        };
        let mask = self.masks.iter().find_map(|m| Some((m, index_of(&ids[..len], m.id)?)));
        let Some((mask, at)) = mask else {
            return Err(self.error(&format!("row {row} has no mask token before <sop>")));
        };
        let frozen = mask.freezes.then(|| positions[at]);
        Ok(Prefix { len, start: positions[len], frozen })
    }

    fn error(&self, found: &str) -> Error {
        let masks: Vec<_> =
            self.masks.iter().map(|m| format!("{} (id {})", m.name, m.id)).collect();
        Error::Prompt {
            reason: format!("{found}, so that there is no saying what is to be continued"),
            hint: format!(
                "give a text with one of {} and end it with <sop> (id {})",
                masks.join(", "),
                self.sop
            ),
        }
    }
}

/// The segments of a row.
fn spans(tokens: &Tokens, row: usize) -> Vec<std::ops::Range<usize>> {
    let t = tokens.len();
    let Some(starts) = &tokens.segment_starts else {
        return std::iter::once(0..t).collect();
    };
    let starts = &starts.ids()[row * t..(row + 1) * t];
    let mut spans = Vec::new();
    let mut begin = 0;
    for segment in starts.chunk_by(|a, b| a == b) {
        spans.push(begin..begin + segment.len());
        begin += segment.len();
    }
    spans
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const MASK: i32 = 90;
    const GMASK: i32 = 91;
    const SOP: i32 = 94;

    fn rule() -> PrefixRule {
        PrefixRule {
            sop: SOP as u32,
            masks: vec![
                MaskToken { name: "[MASK]", id: MASK as u32, freezes: true },
                MaskToken { name: "[gMASK]", id: GMASK as u32, freezes: false },
            ],
        }
    }

    fn streams(division: &Division) -> (Vec<i32>, Vec<i32>) {
        (division.positions.ids().to_vec(), division.block_positions.ids().to_vec())
    }

    #[test]
    fn mask_freezes_and_gmask_counts_on() {
        let tokens = Tokens::new(&[1, MASK, 2, SOP, 3, 4, 5, GMASK, SOP, 6, 7, 8], 2, 0).unwrap();
        let (a, b) = streams(&rule().divide(&tokens, None).unwrap());
        assert_eq!(a, [0, 1, 2, 1, 1, 1, 0, 1, 2, 3, 4, 5]);
        assert_eq!(b, [0, 0, 0, 1, 2, 3, 0, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn segments_are_divided_one_by_one_and_padding_is_left_alone() {
        let ids = [1, MASK, SOP, 2, 3, GMASK, SOP, 0, 0];
        let positions = [0, 1, 2, 0, 1, 2, 3, 0, 0];
        let starts = [0, 0, 0, 3, 3, 3, 3, 7, 8];
        let tokens = Tokens::packed(&ids, &positions, &starts, (1, 9)).unwrap();
        let (a, b) = streams(&rule().divide(&tokens, None).unwrap());
        assert_eq!(a, [0, 1, 1, 0, 1, 2, 3, 0, 0]);
        assert_eq!(b, [0, 0, 1, 0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn texts_that_say_nothing_of_their_prefix_are_refused_with_a_hint() {
        for (ids, says) in [([1, GMASK, 2], "no <sop> (id 94)"), ([1, SOP, GMASK], "no mask")] {
            let tokens = Tokens::new(&ids, 1, 0).unwrap();
            let error = rule().divide(&tokens, None).err().unwrap();
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.hint().unwrap().contains("[gMASK] (id 91)"));
            assert!(rule().undivided(&ids).is_err());
        }
        assert_eq!(rule().undivided(&[1, GMASK, SOP, 4]).unwrap(), 3);
    }
}
