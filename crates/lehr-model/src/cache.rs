//! The cache of keys and values.

use lehr_tensor::ops::attention::{Mask, Pages};
use lehr_tensor::{DType, Device, Result, Tensor, inplace};

use crate::spec::Spec;

/// The KV cache of a batch of sequences of equal length: per layer two tensors `[B, S, K, E]`,
/// allocated once. Positions beyond the last one are never read, so they are not zeroed.
///
/// A model writes the keys and values of new tokens after those of earlier ones and attends over
/// all of them. The cache is independent of the architecture. Inside a
/// [`PagedCache`](crate::PagedCache) the tensors are pools of pages, and each sequence has its own
/// length.
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    capacity: usize,
    len: usize,
    /// Pages that receive new keys and values; their lengths include the new tokens. Without pages,
    /// new values follow the filled positions, whose number is the same in all sequences.
    pages: Option<Pages>,
    /// Length of the longest bidirectional prefix, 0 for causal texts.
    prefix_len: usize,
    /// The last token of each sequence, for models that read it outside of attention.
    last: Last,
    /// [`KvCache::last`] after the running pass.
    next: Last,
}

/// The last token of each sequence in a cache, for models whose tokens read the previous token
/// outside of attention. Empty for other models, and before the first token.
#[derive(Clone, Default)]
pub(crate) struct Last {
    /// Its id, one per sequence.
    pub(crate) ids: Vec<i32>,
    /// Its keys before their offset, `[B, 1, K, E]`, one per layer that offsets keys.
    pub(crate) keys: Vec<Option<Tensor>>,
}

impl KvCache {
    /// Allocates room for `capacity` positions of `batch` sequences; see
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

    /// Creates empty pools for pages of `page_len` positions and sequences of at most `capacity`
    /// positions.
    pub(crate) fn in_pages(
        spec: &Spec,
        place: (Device, DType),
        page_len: usize,
        capacity: usize,
    ) -> Result<Self> {
        Self::of_shape(spec, place, [0, page_len], capacity)
    }

    fn of_shape(
        spec: &Spec,
        (device, dtype): (Device, DType),
        [n, len]: [usize; 2],
        capacity: usize,
    ) -> Result<Self> {
        let shape = [n, len, spec.n_kv_heads, spec.head_dim];
        // On the CPU bf16 is the type of products; activations are f32.
        let dtype = if device.is_cuda() { dtype } else { DType::F32 };
        let room = || Tensor::uninit_on(device, shape, dtype);
        let layer = |_| Ok((room()?, room()?));
        let layers = (0..spec.n_layers).map(layer).collect::<Result<_>>()?;
        let (last, next) = (Last::default(), Last::default());
        Ok(Self { layers, capacity, len: 0, pages: None, prefix_len: 0, last, next })
    }

    /// Grows the pools to `n_pages` pages. It copies one layer at a time, so peak memory exceeds
    /// the larger pools by one layer only.
    pub(crate) fn grow_pages(&mut self, n_pages: usize) -> Result<()> {
        for (k, v) in &mut self.layers {
            let grown = (grown(k, n_pages)?, grown(v, n_pages)?);
            (*k, *v) = grown;
        }
        Ok(())
    }

    /// Positions filled so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether nothing has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of positions with memory.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Truncates to at most `len` positions and returns how many remain. Tokens of a bidirectional
    /// prefix have attended to one another. They therefore stay only if the whole prefix and the
    /// token after it stay; otherwise none does. Nor does any in models whose tokens read the
    /// previous token outside of attention, because only the last one is known.
    #[must_use = "the cache may keep fewer positions than requested"]
    pub fn truncate(&mut self, len: usize) -> usize {
        let is_shorter = len < self.len;
        self.len = self.len.min(len);
        if self.len <= self.prefix_len || is_shorter && !self.last.ids.is_empty() {
            (self.len, self.prefix_len, self.last) = (0, 0, Last::default());
        }
        self.len
    }

    /// Returns the last token of each sequence, if the model reads it. Empty before the first.
    pub(crate) fn last_ids(&self) -> &[i32] {
        &self.last.ids
    }

    /// Returns the last keys of `layer` before their offset, `[B, 1, K, E]`.
    pub(crate) fn last_keys(&self, layer: usize) -> Option<Tensor> {
        self.last.keys.get(layer).cloned().flatten()
    }

    /// Sets the last tokens of the running pass.
    pub(crate) fn set_next_ids(&mut self, ids: Vec<i32>) {
        self.next.ids = ids;
    }

    /// Sets the last keys of `layer` in the running pass.
    pub(crate) fn set_next_keys(&mut self, layer: usize, keys: Tensor) {
        if self.next.keys.is_empty() {
            self.next.keys = vec![None; self.layers.len()];
        }
        self.next.keys[layer] = Some(keys);
    }

    /// Replaces what is known of the last tokens, for sequences in pages, and returns what was.
    pub(crate) fn exchange_last(&mut self, last: Last) -> Last {
        self.next = Last::default();
        std::mem::replace(&mut self.last, last)
    }

    /// Records that a text begins with a bidirectional prefix of `len` tokens.
    pub(crate) fn keep_prefix(&mut self, len: usize) {
        self.prefix_len = self.prefix_len.max(len);
    }

    /// Writes `k` and `v` `[B, T, K, E]` of `layer` after the filled positions, and returns the
    /// layer's whole tensors. Their first `len() + T` positions are valid.
    ///
    /// # Errors
    /// If the shapes or devices do not fit.
    ///
    /// # Panics
    /// If there is no room. The model checks that before the first layer.
    pub(crate) fn write(
        &mut self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (k_all, v_all) = &mut self.layers[layer];
        assert!(self.len + k.shape()[1] <= self.capacity, "the cache has room for the new tokens");
        match &self.pages {
            Some(pages) => inplace::write_pages([k_all, v_all], [k, v], pages)?,
            None => {
                inplace::write_positions(k_all, k, self.len)?;
                inplace::write_positions(v_all, v, self.len)?;
            }
        }
        Ok((k_all.clone(), v_all.clone()))
    }

    /// Returns the mask of `t` new tokens over all written ones.
    pub(crate) fn mask(&self, mask: Mask, t: usize) -> Mask {
        match &self.pages {
            Some(pages) => mask.with_pages(pages.clone()),
            None => mask.with_n_keys(self.len + t),
        }
    }

    /// Returns whether keys and values lie in token order and the host knows their number.
    pub(crate) fn is_in_order(&self) -> bool {
        self.pages.is_none()
    }

    /// Returns the device.
    pub(crate) fn device(&self) -> Device {
        self.layers.first().map_or(Device::Cpu, |(k, _)| k.device())
    }

    /// Sets the pages that receive new keys and values, if any.
    pub(crate) fn set_pages(&mut self, pages: Option<Pages>) {
        self.pages = pages;
    }

    /// Sets the number of filled positions; for paged sequences, that of the longest.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    /// Advances by `t` positions, after all layers have written them.
    pub(crate) fn advance(&mut self, t: usize) {
        self.len += t;
        self.last = std::mem::take(&mut self.next);
    }
}

/// Copies `pool` into a pool with room for `n_pages`.
fn grown(pool: &Tensor, n_pages: usize) -> Result<Tensor> {
    let [n, page_len, n_heads, width] = pool.shape()[..] else { return Ok(pool.clone()) };
    let page = page_len * n_heads;
    let mut all = Tensor::uninit_on(pool.device(), [1, n_pages, page, width], pool.dtype())?;
    inplace::write_positions(&mut all, &pool.reshape([1, n, page, width])?, 0)?;
    all.reshape([n_pages, page_len, n_heads, width])
}
