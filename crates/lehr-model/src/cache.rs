//! Keys and values of the tokens seen so far.

use lehr_tensor::ops::attention::{Mask, Pages};
use lehr_tensor::{DType, Device, Result, Tensor, inplace};

use crate::prefix::Prefix;
use crate::spec::Spec;

/// The KV cache of a batch of sequences: per layer two tensors `[B, S, K, E]`, allocated once.
///
/// A model writes the keys and values of new tokens behind those of earlier ones and attends over
/// all; the cache knows nothing of the architecture. Inside of a [`PagedCache`](crate::PagedCache)
/// the tensors are pools of pages, and each text has a length of its own.
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    capacity: usize,
    len: usize,
    place: Place,
    /// How each row is divided, for models whose texts have a bidirectional context.
    prefixes: Vec<Prefix>,
}

/// Where new keys and values go, and what is there.
#[derive(Clone)]
pub(crate) enum Place {
    /// Behind the positions filled, the same of all sequences.
    End,
    /// The same by numbers on a GPU, while work is recorded or recorded work runs: the number of
    /// positions filled and that number with the new one, both i32 `[1]` there.
    EndOnGpu(Tensor, Tensor),
    /// Into these pages; the lengths count the new tokens.
    Pages(Pages),
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
        Self::of_shape(spec, (device, dtype), [batch, capacity], capacity)
    }

    /// Pools of `n_pages` pages of `page_len` positions, for texts of at most `capacity`.
    pub(crate) fn in_pages(
        spec: &Spec,
        place: (Device, DType),
        [n_pages, page_len]: [usize; 2],
        capacity: usize,
    ) -> Result<Self> {
        Self::of_shape(spec, place, [n_pages, page_len], capacity)
    }

    fn of_shape(
        spec: &Spec,
        (device, dtype): (Device, DType),
        [n, len]: [usize; 2],
        capacity: usize,
    ) -> Result<Self> {
        let shape = [n, len, spec.n_kv_heads, spec.head_dim];
        let zeros = || Tensor::zeros_on(device, shape, dtype);
        let layer = |_| Ok((zeros()?, zeros()?));
        let layers = (0..spec.n_layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, capacity, len: 0, place: Place::End, prefixes: Vec::new() })
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
    #[must_use = "more may be forgotten than requested"]
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

    /// Writes `k` and `v` `[B, T, K, E]` of `layer` at the present end and returns the layer's
    /// whole tensors. `len() + T` of their positions are valid.
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
        match &self.place {
            Place::Pages(pages) => inplace::write_pages([k_all, v_all], [k, v], pages)?,
            Place::EndOnGpu(at, _) => {
                inplace::write_positions_at(k_all, k, at)?;
                inplace::write_positions_at(v_all, v, at)?;
            }
            Place::End => {
                inplace::write_positions(k_all, k, self.len)?;
                inplace::write_positions(v_all, v, self.len)?;
            }
        }
        Ok((k_all.clone(), v_all.clone()))
    }

    /// The mask of `t` new tokens over what was written.
    pub(crate) fn mask(&self, mask: Mask, t: usize) -> Mask {
        match &self.place {
            Place::Pages(pages) => mask.with_pages(pages.clone()),
            Place::EndOnGpu(_, n_keys) => mask.with_n_keys_on_gpu(self.capacity, n_keys.clone()),
            Place::End => mask.with_n_keys(self.len + t),
        }
    }

    /// Where it is.
    pub(crate) fn device(&self) -> Device {
        self.layers.first().map_or(Device::Cpu, |(k, _)| k.device())
    }

    /// Says where new keys and values go.
    pub(crate) fn set_place(&mut self, place: Place) {
        self.place = place;
    }

    /// Says how many positions are filled; of texts in pages, those of the longest.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    /// Copies the text in `one`, a cache of one sequence, into `pages` of this one's pools.
    pub(crate) fn copy_text(&mut self, one: &Self, pages: &Pages) -> Result<()> {
        for ((k_pool, v_pool), (k, v)) in self.layers.iter_mut().zip(&one.layers) {
            let [k, v] = [k.slice(1, 0..one.len)?, v.slice(1, 0..one.len)?];
            inplace::write_pages([k_pool, v_pool], [&k, &v], pages)?;
        }
        Ok(())
    }

    /// Counts `t` positions as filled, after all layers have written them.
    pub(crate) fn advance(&mut self, t: usize) {
        self.len += t;
    }
}
