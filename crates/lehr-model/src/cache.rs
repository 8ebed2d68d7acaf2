//! Keys and values of the tokens seen so far.

use lehr_tensor::ops::attention::Mask;
use lehr_tensor::{DType, Device, Result, Tensor, inplace};

use crate::Spec;
use crate::arch::Prefix;

/// The KV cache of a batch of sequences: per layer two tensors `[B, S, K, E]`, allocated once.
///
/// A model writes the keys and values of new tokens behind those of earlier ones and attends over
/// all; the cache knows nothing of the architecture.
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    capacity: usize,
    len: usize,
    /// On a GPU, while work is recorded or recorded work runs: the number of positions filled and that number with the new one, both
    /// i32 `[1]` there.
    on_gpu: Option<(Tensor, Tensor)>,
    /// How each row is divided, for models whose texts have a bidirectional context.
    prefixes: Vec<Prefix>,
}

impl KvCache {
    /// Room for `capacity` positions of `batch` sequences, where and in what a model computes; see
    /// [`Model::cache`](crate::Model::cache).
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(
        spec: &Spec,
        (device, dtype): (Device, DType),
        batch: usize,
        capacity: usize,
    ) -> Result<Self> {
        let shape = [batch, capacity, spec.n_kv_heads, spec.head_dim];
        let zeros = || Tensor::zeros_on(device, shape, dtype);
        let layer = |_| Ok((zeros()?, zeros()?));
        let layers = (0..spec.n_layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, capacity, len: 0, on_gpu: None, prefixes: Vec::new() })
    }

    /// Positions filled so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all positions from `len` on and returns how many remain: the next tokens are
    /// written there. Tokens of a bidirectional context have seen one another, so if not all of
    /// them and the `<sop>` after them can stay, none does.
    #[must_use = "more may be forgotten than was asked for"]
    pub fn truncate(&mut self, len: usize) -> usize {
        let whole = self.prefixes.iter().map(|prefix| prefix.len + 1).max().unwrap_or(0);
        self.len = if len < whole { 0 } else { self.len.min(len) };
        self.len
    }

    /// How each row is divided, as it was said last.
    pub(crate) fn prefixes(&self) -> &[Prefix] {
        &self.prefixes
    }

    /// Remembers how each row is divided.
    pub(crate) fn set_prefixes(&mut self, prefixes: Vec<Prefix>) {
        self.prefixes = prefixes;
    }

    /// Writes `k` and `v` `[B, T, K, E]` of `layer` at the present end and returns the layer's whole
    /// tensors, of which `len() + T` positions are valid.
    ///
    /// # Errors
    /// If the shapes or devices do not fit.
    ///
    /// # Panics
    /// If there is no room: the model checks before the first layer.
    pub(crate) fn write(
        &mut self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (k_all, v_all) = &mut self.layers[layer];
        assert!(self.len + k.shape()[1] <= self.capacity, "the cache has room for the new tokens");
        match &self.on_gpu {
            Some((at, _)) => {
                inplace::write_positions_at(k_all, k, at)?;
                inplace::write_positions_at(v_all, v, at)?;
            }
            None => {
                inplace::write_positions(k_all, k, self.len)?;
                inplace::write_positions(v_all, v, self.len)?;
            }
        }
        Ok((k_all.clone(), v_all.clone()))
    }

    /// The mask of `t` new tokens over what was written.
    pub(crate) fn mask(&self, mask: Mask, t: usize) -> Mask {
        match &self.on_gpu {
            Some((_, n_keys)) => mask.with_n_keys_on_gpu(self.capacity, n_keys.clone()),
            None => mask.with_n_keys(self.len + t),
        }
    }

    /// Where on a GPU the number of filled positions stands, without and with the new one; `None` = it is a number of the host.
    pub(crate) fn set_on_gpu(&mut self, numbers: Option<(Tensor, Tensor)>) {
        self.on_gpu = numbers;
    }

    /// Counts `t` positions as filled, after all layers have written them.
    pub(crate) fn advance(&mut self, t: usize) {
        self.len += t;
    }
}
