//! What the attention of one block is, beside its weights.

use lehr_tensor::Tensor;

use super::{Spec, Tokens};
use crate::{Error, KvCache, Result};

/// Number and width of the heads, the scale of their scores and how far they look back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// Which block, for the cache.
    layer: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    scale: f32,
    window: Option<usize>,
}

impl Heads {
    /// The heads of block `layer`, with scores times `1 / √E` and an unlimited view.
    pub(super) fn new(spec: &Spec, layer: usize) -> Self {
        let &Spec { n_heads, n_kv_heads, head_dim, .. } = spec;
        let heads = Self { layer, n_heads, n_kv_heads, head_dim, scale: 1.0, window: None };
        heads.with_scale_of(head_dim as f64)
    }

    /// Scores times `1 / √width`.
    pub(super) fn with_scale_of(self, width: f64) -> Self {
        Self { scale: width.sqrt().recip() as f32, ..self }
    }

    /// Each token sees at most `window` tokens, itself among them.
    pub(super) fn with_window(self, window: Option<usize>) -> Self {
        Self { window, ..self }
    }

    /// Projected queries `[B, T, H·E]` as heads `[B, T, H, E]`.
    pub(super) fn queries(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.reshape([x.shape()[0], x.shape()[1], self.n_heads, self.head_dim])?)
    }

    /// Projected keys or values `[B, T, K·E]` as heads `[B, T, K, E]`.
    pub(super) fn keys(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.reshape([x.shape()[0], x.shape()[1], self.n_kv_heads, self.head_dim])?)
    }

    /// Causal attention over these tokens and those in the cache, `[B, T, H·E]`.
    pub(super) fn attend(
        &self,
        q: &Tensor,
        (k, v): (&Tensor, &Tensor),
        tokens: &Tokens,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let mut mask = tokens.causal_mask();
        if let Some(window) = self.window {
            mask = mask.with_window(window);
        }
        let (b, t) = (q.shape()[0], q.shape()[1]);
        let a = match cache {
            None => q.attention(k, v, &mask, self.scale)?,
            Some(cache) => {
                let (k, v) = cache.write(self.layer, k, v)?;
                q.attention(&k, &v, &cache.mask(mask, t), self.scale)?
            }
        };
        Ok(a.reshape([b, t, self.n_heads * self.head_dim])?)
    }
}

/// A block whose tokens see everything before them, in `layer_types`.
pub(super) const FULL: &str = "full_attention";
/// A block whose tokens see a window, in `layer_types`.
pub(super) const SLIDING: &str = "sliding_attention";

/// The window of block `layer` by the `layer_types` of a file.
pub(super) fn window(
    layer_types: &[String],
    layer: usize,
    sliding_window: Option<usize>,
) -> Result<Option<usize>> {
    match (layer_types.get(layer).map(String::as_str), sliding_window) {
        // The second is an older name for it.
        (Some(FULL | "attention"), _) => Ok(None),
        (Some(SLIDING), Some(window)) => Ok(Some(window)),
        (Some(SLIDING), None) => {
            let expected = "a number of tokens, because layer_types has sliding_attention";
            Err(Error::config("sliding_window", "null or switched off", expected))
        }
        (Some(other), _) => {
            Err(Error::config("layer_types", other, format!("{FULL} or {SLIDING}")))
        }
        (None, _) => {
            let found = format!("of {} entries", layer_types.len());
            Err(Error::config("layer_types", found, "as many as num_hidden_layers"))
        }
    }
}

/// An error if a window is 0, or `layer_types` are not one known name for each block.
pub(super) fn check_windows(
    layer_types: Option<&[String]>,
    n_layers: usize,
    sliding_window: Option<usize>,
) -> Result<()> {
    if sliding_window == Some(0) {
        return Err(Error::config("sliding_window", 0, "at least 1"));
    }
    let Some(layer_types) = layer_types else { return Ok(()) };
    if layer_types.len() != n_layers {
        let found = format!("of {} entries", layer_types.len());
        return Err(Error::config("layer_types", found, format!("num_hidden_layers = {n_layers}")));
    }
    (0..n_layers).try_for_each(|layer| window(layer_types, layer, sliding_window).map(drop))
}
