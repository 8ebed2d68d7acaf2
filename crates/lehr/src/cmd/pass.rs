//! Packs several texts into one forward pass.

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
        let end = placed.last().map_or(0, |text| text.start + text.ids.len());
        let used = if n_rows == 1 { end } else { seq_len };
        Ok(Self { tokens: Tokens::pack(&texts, n_rows, used)?, starts })
    }
}

impl Placed {
    fn packed(&self) -> PackedText<'_> {
        PackedText { ids: &self.ids, layout: &self.layout, row: self.row, start: self.start }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use lehr_model::Config;
    use lehr_tokenizer::Trainer;

    use super::*;

    /// All texts are packed, in order and apart, whatever the context of the model.
    #[test]
    fn every_text_is_in_one_pass() {
        let tokenizer = Trainer::new(300).train(["the glass cools"].repeat(4)).unwrap();
        let texts: Vec<Vec<u32>> = (0..300).map(|i| vec![7; 1 + i % 40]).collect();
        for context in [64, 1500, 2048, 4096] {
            let json = serde_json::json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300,
                "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
                "max_position_embeddings": context, "hidden_act": "silu", "rope_theta": 1e4,
                "tie_word_embeddings": true,
            });
            let model = Model::new(Config::from_json(&json).unwrap(), 1).unwrap();
            let mut rest: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            while !rest.is_empty() {
                let pass = TextPass::of(&model, &tokenizer, &rest).unwrap();
                assert!(!pass.starts.is_empty(), "context {context}");
                let mut end = 0;
                for (start, text) in pass.starts.iter().zip(&rest) {
                    assert!(*start >= end);
                    end = start + text.len();
                }
                assert!(end <= PASS_TOKENS && end <= pass.tokens.batch() * pass.tokens.len());
                rest.drain(..pass.starts.len());
            }
        }
    }
}
