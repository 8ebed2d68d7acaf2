//! Keys and values of the tokens seen so far.

use lehr_tensor::ops::attention::{Mask, Pages};
use lehr_tensor::{DType, Device, Result, Tensor, inplace};

use crate::spec::Spec;

/// The KV cache of a batch of sequences of one length: per layer two tensors `[B, S, K, E]`,
/// allocated once. What is behind the last position is never read, so it is not zeroed.
///
/// A model writes the keys and values of new tokens behind those of earlier ones and attends over
/// all; the cache knows nothing of the architecture. Inside of a [`PagedCache`](crate::PagedCache)
/// the tensors are pools of pages, and each sequence has a length of its own.
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    capacity: usize,
    len: usize,
    /// The pages that new keys and values go into, whose lengths count the new tokens. Without
    /// pages they go behind the positions filled, the same of all sequences.
    pages: Option<Pages>,
    /// The longest bidirectional prefix of a text, 0 for causal texts.
    prefix_len: usize,
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

    /// Pools without pages yet, for pages of `page_len` positions and sequences of at most
    /// `capacity`.
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
        let room = || Tensor::uninit_on(device, shape, dtype);
        let layer = |_| Ok((room()?, room()?));
        let layers = (0..spec.n_layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, capacity, len: 0, pages: None, prefix_len: 0 })
    }

    /// Makes the pools `n_pages` pages large. One layer at a time is copied, so that little more
    /// memory is taken than the larger pools need.
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
    /// written there. Tokens of a bidirectional prefix have seen one another, so if not all of
    /// them and the token after them, which ends the prefix, can stay, none does.
    #[must_use = "more may be forgotten than was asked for"]
    pub fn truncate(&mut self, len: usize) -> usize {
        self.len = self.len.min(len);
        if self.len <= self.prefix_len {
            (self.len, self.prefix_len) = (0, 0);
        }
        self.len
    }

    /// Remembers that a text begins with a bidirectional prefix of `len` tokens.
    pub(crate) fn keep_prefix(&mut self, len: usize) {
        self.prefix_len = self.prefix_len.max(len);
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
        match &self.pages {
            Some(pages) => inplace::write_pages([k_all, v_all], [k, v], pages)?,
            None => {
                inplace::write_positions(k_all, k, self.len)?;
                inplace::write_positions(v_all, v, self.len)?;
            }
        }
        Ok((k_all.clone(), v_all.clone()))
    }

    /// The mask of `t` new tokens over what was written.
    pub(crate) fn mask(&self, mask: Mask, t: usize) -> Mask {
        match &self.pages {
            Some(pages) => mask.with_pages(pages.clone()),
            None => mask.with_n_keys(self.len + t),
        }
    }

    /// Returns whether keys and values lie in the order of the tokens, and their number is known to
    /// the host.
    pub(crate) fn is_in_order(&self) -> bool {
        self.pages.is_none()
    }

    /// Where it is.
    pub(crate) fn device(&self) -> Device {
        self.layers.first().map_or(Device::Cpu, |(k, _)| k.device())
    }

    /// Says into which pages new keys and values go, if they go into pages.
    pub(crate) fn set_pages(&mut self, pages: Option<Pages>) {
        self.pages = pages;
    }

    /// Says how many positions are filled; of texts in pages, those of the longest.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    /// Counts `t` positions as filled, after all layers have written them.
    pub(crate) fn advance(&mut self, t: usize) {
        self.len += t;
    }
}

/// A pool with the pages of `pool` and room for `n_pages`.
fn grown(pool: &Tensor, n_pages: usize) -> Result<Tensor> {
    let [n, page_len, n_heads, width] = pool.shape()[..] else { return Ok(pool.clone()) };
    let page = page_len * n_heads;
    let mut all = Tensor::uninit_on(pool.device(), [1, n_pages, page, width], pool.dtype())?;
    inplace::write_positions(&mut all, &pool.reshape([1, n, page, width])?, 0)?;
    all.reshape([n_pages, page_len, n_heads, width])
}
