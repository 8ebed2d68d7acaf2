//! One forward pass: its inputs, and the state passed from block to block.

use std::sync::Arc;

use lehr_tensor::{DType, Tensor, is_recording};

use super::attention::KvPrefixParams;
use super::{ActivationCheckpointing, Spec, Tokens};
use crate::{Error, KvCache, Result};

/// One forward pass.
pub struct Pass<'a> {
    /// The tokens.
    pub(super) tokens: &'a Tokens,
    /// Keys and values of earlier tokens, continued by the new ones.
    pub(super) cache: Option<&'a mut KvCache>,
    /// The activation-checkpointing policy of recorded passes.
    pub(super) checkpointing: ActivationCheckpointing,
    /// Learned keys and values before every text, one pair per block.
    pub(super) kv_prefix: Option<Arc<[KvPrefixParams]>>,
    /// The type of products.
    pub(super) products: DType,
}

impl<'a> Pass<'a> {
    /// Creates a pass over whole texts. It is recorded if recording is on.
    #[must_use]
    pub fn whole(tokens: &'a Tokens, checkpointing: ActivationCheckpointing) -> Self {
        Self { tokens, cache: None, checkpointing, kv_prefix: None, products: DType::F32 }
    }

    /// Creates a pass over tokens that continue those in `cache`. It is never recorded, because
    /// keys and values in a cache have no gradients.
    #[must_use]
    pub fn continuing(tokens: &'a Tokens, cache: &'a mut KvCache) -> Self {
        let checkpointing = ActivationCheckpointing::None;
        let products = DType::F32;
        Self { tokens, cache: Some(cache), checkpointing, kv_prefix: None, products }
    }

    /// Sets the type of the products of attention. On a GPU it is that of the activations.
    pub(crate) fn with_products(self, products: DType) -> Self {
        Self { products, ..self }
    }

    /// Sets the learned keys and values before every text.
    pub(crate) fn with_kv_prefix(self, kv_prefix: Option<Arc<[KvPrefixParams]>>) -> Self {
        Self { kv_prefix, ..self }
    }

    /// Checks that the tokens fit the model and the cache before anything is computed.
    ///
    /// # Errors
    /// If there is no room for them, they continue a cache while recording is on, or they have a
    /// second stream of positions that this model does not support.
    pub(super) fn check(&self, spec: &Spec) -> Result<()> {
        if self.tokens.block_positions.is_some() {
            return Err(Error::layout("a second stream of positions", "one stream of positions"));
        }
        self.check_room(spec)
    }

    /// Checks the pass like [`Pass::check`], for models whose texts have a bidirectional prefix.
    pub(super) fn check_prefix(&self, spec: &Spec) -> Result<()> {
        self.check(spec)?;
        self.check_has_prefix()
    }

    /// Checks the pass like [`Pass::check_prefix`], for models with two streams of positions, and
    /// returns the second.
    pub(super) fn check_two_streams(&self, spec: &Spec) -> Result<&'a Tensor> {
        self.check_room(spec)?;
        self.check_has_prefix()?;
        self.tokens
            .block_positions
            .as_ref()
            .ok_or_else(|| Error::layout("one stream of positions", "a second stream of positions"))
    }

    fn check_has_prefix(&self) -> Result<()> {
        match self.tokens.prefix_lens {
            Some(_) => Ok(()),
            None => {
                Err(Error::layout("no bidirectional prefix", "the length of each text's prefix"))
            }
        }
    }

    fn check_room(&self, spec: &Spec) -> Result<()> {
        let cache = self.cache.as_deref();
        if cache.is_some() && is_recording() {
            return Err(Error::RecordedCache);
        }
        let start = cache.map_or(0, KvCache::len);
        let limit = cache.map_or(spec.max_positions, |c| c.capacity().min(spec.max_positions));
        let found = start + self.tokens.len();
        if found <= limit {
            return Ok(());
        }
        Err(Error::TooLong { what: "the number of tokens", found, limit })
    }
}

/// The state passed from block to block.
#[derive(Clone)]
pub(super) struct Residual {
    /// The residual stream `[B, T, D]`.
    pub(super) x: Tensor,
    /// Input of the next sub-layer: the stream after a norm, or in post-norm families the stream
    /// itself.
    pub(super) normed: Tensor,
}

impl Residual {
    /// Wraps a residual stream that is the output of a norm and needs no other.
    pub(super) fn already_normed(x: Tensor) -> Self {
        Self { normed: x.clone(), x }
    }
}
