//! Layout of texts with a bidirectional context: GLM-130B and ChatGLM-6B.
//!
//! Such a text is `context <sop> continuation`. The context is its bidirectional prefix: its tokens
//! attend to one another in both directions. `<sop>` and later tokens attend to the context and to
//! earlier tokens. A mask token in the context says what to write: `[MASK]` a span at its own
//! position, `[gMASK]` the text after the context.

use super::Layout;
use crate::{Error, Result};

/// A token that marks the place of the continuation.
pub(super) struct MaskToken {
    pub(super) name: &'static str,
    pub(super) id: u32,
    /// Whether `<sop>` and all later tokens stand at the position of this token.
    pub(super) freezes: bool,
}

/// The layout rule of a family.
pub(super) struct PrefixRule {
    /// Id of `<sop>`.
    pub(super) sop: u32,
    /// Mask tokens by priority: the first one found in the context counts.
    pub(super) masks: Vec<MaskToken>,
    /// Whether tokens have a second position, counted from `<sop>`.
    pub(super) has_block_positions: bool,
}

impl PrefixRule {
    /// Lays out one text.
    ///
    /// # Errors
    /// If it has no `<sop>`, or no mask token before it.
    pub(super) fn layout(&self, ids: &[i32]) -> Result<Layout> {
        let index_of =
            |ids: &[i32], id: u32| ids.iter().position(|i| i64::from(*i) == i64::from(id));
        let Some(prefix_len) = index_of(ids, self.sop) else {
            return Err(self.error(&format!("the text has no <sop> (id {})", self.sop)));
        };
        let context = &ids[..prefix_len];
        let mask = self.masks.iter().find_map(|m| Some((m, index_of(context, m.id)?)));
        let Some((mask, at)) = mask else {
            return Err(self.error("the text has no mask token before <sop>"));
        };
        let frozen = mask.freezes.then_some(at as i32);
        Ok(Layout::with_prefix(ids.len(), prefix_len, frozen, self.has_block_positions))
    }

    fn error(&self, found: &str) -> Error {
        let masks: Vec<_> =
            self.masks.iter().map(|m| format!("{} (id {})", m.name, m.id)).collect();
        Error::Prompt {
            reason: format!("{found}, so it does not say what is to be continued"),
            hint: format!(
                "give a text with one of {} and end it with <sop> (id {})",
                masks.join(", "),
                self.sop
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::super::{PackedText, TokenPosition, Tokens};
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
            has_block_positions: true,
        }
    }

    fn streams(layout: &Layout) -> (&[i32], &[i32]) {
        (&layout.positions, layout.block_positions.as_ref().unwrap())
    }

    #[test]
    fn mask_freezes_and_gmask_counts_on() {
        let masked = rule().layout(&[1, MASK, 2, SOP, 3, 4]).unwrap();
        assert_eq!(streams(&masked), (&[0, 1, 2, 1, 1, 1][..], &[0, 0, 0, 1, 2, 3][..]));
        let generating = rule().layout(&[5, GMASK, SOP, 6, 7, 8]).unwrap();
        assert_eq!(streams(&generating), (&[0, 1, 2, 3, 4, 5][..], &[0, 0, 1, 2, 3, 4][..]));
        assert_eq!((masked.prefix_len, generating.prefix_len), (3, 2));
        let place = |position, in_block| TokenPosition { position, block_position: Some(in_block) };
        assert_eq!((masked.next(0), masked.next(2)), (place(1, 4), place(1, 6)));
        assert_eq!((generating.next(0), generating.next(2)), (place(6, 5), place(8, 7)));
    }

    #[test]
    fn a_continuation_stands_where_the_whole_text_has_it() {
        let text = [1, MASK, 2, SOP, 3, 4];
        let (whole, prompt) = (rule().layout(&text).unwrap(), rule().layout(&text[..4]).unwrap());
        let all = Tokens::of_texts(&text, &[&whole], 0).unwrap();
        let rest = Tokens::of_texts(&text[4..], &[&prompt], 4).unwrap();
        assert_eq!(rest.positions.ids(), &all.positions.ids()[4..]);
        let blocks = |tokens: &Tokens| tokens.block_positions.as_ref().unwrap().ids().to_vec();
        assert_eq!(blocks(&rest), blocks(&all)[4..]);
        assert_eq!(rest.prefix_lens.unwrap().ids(), [3, 3]);
    }

    #[test]
    fn packed_texts_keep_their_layouts_and_padding_stands_alone() {
        let (a, b) = ([1, MASK, SOP], [2, 3, GMASK, SOP]);
        let (la, lb) = (rule().layout(&a).unwrap(), rule().layout(&b).unwrap());
        let texts = [
            PackedText { ids: &a, layout: &la, row: 0, start: 0 },
            PackedText { ids: &b, layout: &lb, row: 0, start: 3 },
        ];
        let tokens = Tokens::pack(&texts, 1, 9).unwrap();
        assert_eq!(tokens.positions.ids(), [0, 1, 1, 0, 1, 2, 3, 0, 0]);
        assert_eq!(tokens.block_positions.unwrap().ids(), [0, 0, 1, 0, 0, 0, 1, 0, 0]);
        assert_eq!(tokens.segment_starts.unwrap().ids(), [0, 0, 0, 3, 3, 3, 3, 7, 8]);
        assert_eq!(tokens.prefix_lens.unwrap().ids(), [2, 2, 2, 3, 3, 3, 3, 0, 0]);
        assert!(Tokens::pack(&texts, 1, 6).is_err());
        let causal = Layout::causal(4);
        let other = PackedText { ids: &b, layout: &causal, row: 0, start: 3 };
        assert!(Tokens::pack(&[texts[0], other], 1, 9).is_err());
    }

    #[test]
    fn texts_that_say_nothing_of_their_prefix_are_refused_with_a_hint() {
        for (ids, says) in [([1, GMASK, 2], "no <sop> (id 94)"), ([1, SOP, GMASK], "no mask")] {
            let error = rule().layout(&ids).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.hint().unwrap().contains("[gMASK] (id 91)"));
        }
    }
}
