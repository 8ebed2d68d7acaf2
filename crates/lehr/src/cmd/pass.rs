//! Several texts in one pass of a model.

use anyhow::Result;
use lehr_infer::check_ids;
use lehr_model::{Layout, Model, PackedText, Tokens};
use lehr_tokenizer::Tokenizer;

/// Tokens of a pass. More make no product faster.
pub(crate) const PASS_TOKENS: usize = 2048;

/// The input of a pass: each text is a segment of its own.
pub(crate) struct TextPass {
    /// Its tokens.
    pub(crate) tokens: Tokens,
    /// Index of the first token of each text in it, row by row.
    pub(crate) starts: Vec<usize>,
}

/// A text in a pass.
struct Placed {
    ids: Vec<i32>,
    layout: Layout,
    row: usize,
    start: usize,
}

impl TextPass {
    /// Packs as many of the first `texts` as fit. Each has at least one id, and at most as many as
    /// the context of the model and [`PASS_TOKENS`].
    pub(crate) fn of(model: &Model, tokenizer: &Tokenizer, texts: &[&[u32]]) -> Result<Self> {
        let seq_len = model.spec().max_positions.min(PASS_TOKENS);
        let n_rows_max = PASS_TOKENS / seq_len;
        let mut placed: Vec<Placed> = Vec::new();
        let (mut row, mut start) = (0, 0);
        for ids in texts {
            check_ids(ids, tokenizer, model)?;
            let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
            if start + ids.len() > seq_len {
                (row, start) = (row + 1, 0);
            }
            if row == n_rows_max {
                break;
            }
            let layout = model.layout(&ids)?;
            let end = start + ids.len();
            placed.push(Placed { ids, layout, row, start });
            start = end;
        }
        let packed = |text: &Placed| text.row * seq_len + text.start;
        let starts = placed.iter().map(packed).collect();
        let texts: Vec<_> = placed.iter().map(Placed::packed).collect();
        let n_rows = placed.last().map_or(1, |text| text.row + 1);
        // A single row need not be longer than its texts.
        let used = if n_rows == 1 { start } else { seq_len };
        Ok(Self { tokens: Tokens::pack(&texts, n_rows, used)?, starts })
    }
}

impl Placed {
    fn packed(&self) -> PackedText<'_> {
        PackedText { ids: &self.ids, layout: &self.layout, row: self.row, start: self.start }
    }
}
