//! Attention of every family: masks, windows, the cache and learned prefixes.

use std::sync::Arc;

use lehr_tensor::ops::attention::Mask;
use lehr_tensor::ops::previous_rows::{AtStart, Previous};
use lehr_tensor::{DType, Param, Tensor};

use super::{Pass, Spec, Tokens};
use crate::{Error, KvCache, Result};

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;

/// Learned keys and values of one block, `[P, K, E]` each, placed before every text and visible to
/// every query (prefix tuning, Li and Liang 2021, <https://arxiv.org/abs/2101.00190>; P-tuning v2,
/// Liu et al. 2021, <https://arxiv.org/abs/2110.07602>). They are not rotated and do not shift the
/// positions of the text, as in the code published with ChatGLM-6B.
#[derive(Clone)]
pub(super) struct KvPrefix {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

/// The parameters of a [`KvPrefix`].
pub(crate) struct KvPrefixParams {
    pub(crate) k: Param,
    pub(crate) v: Param,
}

/// Queries `[B, T, H, E]` and keys and values `[B, T, K, E]` of the new tokens, after rotation.
pub(super) struct Qkv {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

/// The part of a pass that attention reads in all blocks: the mask and the learned prefix. Made
/// once per pass.
#[derive(Clone)]
pub(super) struct AttentionContext {
    mask: Mask,
    prefix: Option<PrefixContext>,
}

/// Learned keys and values of all blocks, and their placement.
#[derive(Clone)]
struct PrefixContext {
    layers: Arc<[KvPrefixParams]>,
    place: PrefixPlace,
}

/// Placement of learned keys and values among those of the tokens.
#[derive(Clone)]
struct PrefixPlace {
    /// Row of `[keys of the tokens; learned keys]` for each key: i32 `[B · Tk]`.
    rows: Tensor,
    /// Sequences B.
    batch: usize,
}

impl AttentionContext {
    /// Makes the context of a decoder: a token attends to earlier tokens and to the bidirectional
    /// prefix of its segment.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn causal(pass: &Pass<'_>) -> Result<Self> {
        Self::new(pass, pass.tokens.causal_mask())
    }

    /// Makes the context of an encoder: a token attends to its whole segment.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn bidirectional(pass: &Pass<'_>) -> Result<Self> {
        Self::new(pass, pass.tokens.bidirectional_mask())
    }

    fn new(pass: &Pass<'_>, mask: Mask) -> Result<Self> {
        let mask = mask.in_bf16(pass.products == DType::BF16);
        let Some(layers) = pass.kv_prefix.clone() else {
            return Ok(Self { mask, prefix: None });
        };
        let n = layers.first().map_or(0, |layer| layer.k.shape()[0]);
        let place = match &pass.cache {
            None => PrefixPlace::before_segments(pass.tokens, n)?,
            Some(_) => PrefixPlace::alone(pass.tokens.batch(), n)?,
        };
        let mask = mask.with_leading_keys(n);
        Ok(Self { mask, prefix: Some(PrefixContext { layers, place }) })
    }
}

impl PrefixPlace {
    /// Places `n` learned rows before every segment. Rows with fewer segments are padded at their
    /// end with keys that no query sees.
    fn before_segments(tokens: &Tokens, n: usize) -> Result<Self> {
        let (batch, t) = (tokens.batch(), tokens.len());
        let one_segment = vec![0; batch * t];
        let starts = tokens.segment_starts.as_ref().map_or(&one_segment[..], |starts| starts.ids());
        let mut all: Vec<Vec<i32>> = Vec::new();
        for b in 0..batch {
            let (mut rows, mut token) = (Vec::new(), b * t);
            for segment in starts[b * t..(b + 1) * t].chunk_by(|a, b| a == b) {
                rows.extend((batch * t..batch * t + n).map(|row| row as i32));
                rows.extend((token..token + segment.len()).map(|row| row as i32));
                token += segment.len();
            }
            all.push(rows);
        }
        let longest = all.iter().map(Vec::len).max().unwrap_or(0);
        for (b, rows) in all.iter_mut().enumerate() {
            rows.resize(longest, (b * t) as i32);
        }
        let rows = Tensor::from_ids(&all.concat(), [batch * longest])?;
        Ok(Self { rows, batch })
    }

    /// Repeats `n` learned rows for each sequence.
    fn alone(batch: usize, n: usize) -> Result<Self> {
        let rows: Vec<i32> = (0..batch).flat_map(|_| 0..n as i32).collect();
        Ok(Self { rows: Tensor::from_ids(&rows, [batch * n])?, batch })
    }

    /// Gathers the learned rows `[P, K, E]` and those of the tokens `[B, T, K, E]` into one tensor
    /// `[B, Tk, K, E]`.
    fn among(&self, x: &Tensor, learned: &Tensor) -> Result<Tensor> {
        let (k, e) = (x.shape()[2], x.shape()[3]);
        let tokens = x.reshape([x.shape()[0] * x.shape()[1], k * e])?;
        let learned = learned.reshape([learned.shape()[0], k * e])?;
        let all = Tensor::concat(&[&tokens, &learned], 0)?;
        self.gather(&all, [k, e])
    }

    /// Prepends the learned rows to keys of a cache `[B, N, K, E]`: `[B, P + N, K, E]`.
    fn before(&self, cached: &Tensor, learned: &Tensor) -> Result<Tensor> {
        let (k, e) = (cached.shape()[2], cached.shape()[3]);
        let learned = self.gather(&learned.reshape([learned.shape()[0], k * e])?, [k, e])?;
        Ok(Tensor::concat(&[&learned, cached], 1)?)
    }

    fn gather(&self, rows: &Tensor, [k, e]: [usize; 2]) -> Result<Tensor> {
        let n_keys = self.rows.shape()[0] / self.batch.max(1);
        Ok(rows.gather_rows(&self.rows)?.reshape([self.batch, n_keys, k, e])?)
    }
}

/// The attention of one block, without its projections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attention {
    layer: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    scale: f32,
    window: Option<usize>,
}

impl Attention {
    /// Creates the attention of block `layer`, with scores scaled by `1 / √E` and no window.
    pub(super) fn new(spec: &Spec, layer: usize) -> Self {
        let &Spec { n_heads, n_kv_heads, head_dim, .. } = spec;
        let scale = (head_dim as f64).sqrt().recip() as f32;
        Self { layer, n_heads, n_kv_heads, head_dim, scale, window: None }
    }

    /// Sets the factor of the scores.
    pub(super) fn with_scale(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// Limits attention to `window` tokens, including the token itself.
    pub(super) fn with_window(self, window: Option<usize>) -> Self {
        Self { window, ..self }
    }

    /// Splits projected queries `[B, T, H·E]` into heads `[B, T, H, E]`.
    pub(super) fn queries(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.reshape([x.shape()[0], x.shape()[1], self.n_heads, self.head_dim])?)
    }

    /// Splits projected keys or values `[B, T, K·E]` into heads `[B, T, K, E]`.
    pub(super) fn keys(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.reshape([x.shape()[0], x.shape()[1], self.n_kv_heads, self.head_dim])?)
    }

    /// Splits one projection `[B, T, (H + 2K)·E]` that holds all query heads, then all key heads,
    /// then all value heads.
    pub(super) fn split(&self, qkv: &Tensor) -> Result<Qkv> {
        let (h, k, e) = (self.n_heads, self.n_kv_heads, self.head_dim);
        let qkv = qkv.reshape([qkv.shape()[0], qkv.shape()[1], h + 2 * k, e])?;
        let part = |heads: std::ops::Range<usize>| qkv.slice(2, heads);
        Ok(Qkv { q: part(0..h)?, k: part(h..h + k)?, v: part(h + k..h + 2 * k)? })
    }

    /// Splits one projection `[B, T, H·3E]` that holds query, key and value of each head in turn.
    pub(super) fn split_by_head(&self, qkv: &Tensor) -> Result<Qkv> {
        let e = self.head_dim;
        let qkv = qkv.reshape([qkv.shape()[0], qkv.shape()[1], self.n_heads, 3 * e])?;
        let part = |i: usize| qkv.slice(3, i * e..(i + 1) * e);
        Ok(Qkv { q: part(0)?, k: part(1)?, v: part(2)? })
    }

    /// Gives keys `[B, T, K, E]` the upper half of the previous token's channels. The first token
    /// of a text keeps its own. A cache remembers the last keys for the next pass.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn offset_keys(
        &self,
        k: &Tensor,
        starts: &Tensor,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let before = cache.as_deref().and_then(|cache| cache.last_keys(self.layer));
        let previous = Previous { starts, before: before.as_ref() };
        let channels = self.head_dim / 2..self.head_dim;
        let offset = k.previous_rows(previous, channels, AtStart::Own)?;
        if let Some(cache) = cache {
            let t = k.shape()[1];
            cache.set_next_keys(self.layer, k.slice(1, t.saturating_sub(1)..t)?);
        }
        Ok(offset)
    }

    /// Attends to these tokens and those in the cache: `[B, T, H·E]`.
    ///
    /// # Errors
    /// If shapes do not fit, a window would hide a learned prefix, the cache does not support a
    /// prefix, or memory runs out.
    pub(super) fn forward(
        &self,
        qkv: &Qkv,
        context: &AttentionContext,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let prefix = context.prefix.as_ref().map(|prefix| {
            let KvPrefixParams { k, v } = &prefix.layers[self.layer];
            (&prefix.place, KvPrefix { k: k.tensor(), v: v.tensor() })
        });
        self.attend(qkv, &context.mask, prefix, cache)
    }

    /// Attends like [`Attention::forward`], from one unrotated projection `[B, T, (H + 2K)·E]`.
    /// Without cache and learned prefix the parts are not copied.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub(super) fn forward_packed(
        &self,
        qkv: &Tensor,
        context: &AttentionContext,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        if cache.is_none() && context.prefix.is_none() {
            let mask = self.windowed(context.mask.clone());
            return Ok(qkv.attention_packed(self.n_heads, self.n_kv_heads, &mask, self.scale)?);
        }
        self.forward(&self.split(qkv)?, context, cache)
    }

    fn attend(
        &self,
        Qkv { q, k, v }: &Qkv,
        mask: &Mask,
        prefix: Option<(&PrefixPlace, KvPrefix)>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let (b, t) = (q.shape()[0], q.shape()[1]);
        let mask = match self.window {
            // A window at least as long as the row hides nothing, so it does not hide the prefix.
            Some(window) if prefix.is_some() => {
                let n_tokens = t + cache.as_deref().map_or(0, KvCache::len);
                if n_tokens <= window { mask.clone() } else { self.windowed(mask.clone()) }
            }
            _ => self.windowed(mask.clone()),
        };
        let out = match (cache, prefix) {
            (None, None) => q.attention(k, v, &mask, self.scale)?,
            (None, Some((place, learned))) => {
                let (k, v) = (place.among(k, &learned.k)?, place.among(v, &learned.v)?);
                q.attention(&k, &v, &mask, self.scale)?
            }
            (Some(cache), None) => {
                let (k, v) = cache.write(self.layer, k, v)?;
                q.attention(&k, &v, &cache.mask(mask, t), self.scale)?
            }
            (Some(cache), Some((place, learned))) => {
                if !cache.is_in_order() {
                    return Err(Error::KvPrefix {
                        doing: "continuing texts by recorded work or in pages",
                    });
                }
                let (k, v) = cache.write(self.layer, k, v)?;
                let filled = 0..cache.len() + t;
                let k = place.before(&k.slice(1, filled.clone())?, &learned.k)?;
                let v = place.before(&v.slice(1, filled)?, &learned.v)?;
                q.attention(&k, &v, &mask, self.scale)?
            }
        };
        Ok(out.reshape([b, t, self.n_heads * self.head_dim])?)
    }

    fn windowed(&self, mask: Mask) -> Mask {
        match self.window {
            Some(window) => mask.with_window(window),
            None => mask,
        }
    }
}
