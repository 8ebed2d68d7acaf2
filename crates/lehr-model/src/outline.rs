//! The parameters of a model without their numbers: what there is to load, and how large it is.

use std::cell::RefCell;
use std::fmt;

use lehr_tensor::quant::WeightFormat;
use lehr_tensor::{Shape, Source, Tensor};

use crate::io::Checkpoint;
use crate::{Config, Model, Result, Spec};

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Tables looked up by token, position or kind.
    Embedding,
    /// Projections of attention.
    Attention,
    /// Matrices between.
    Mlp,
    /// Scales and shifts of norms.
    Norm,
    /// What turns hidden states into logits, unless it is the embedding.
    Head,
    /// Anything else.
    Other,
}

impl Role {
    /// All roles, in the order of a model.
    pub const ALL: [Self; 6] =
        [Self::Embedding, Self::Attention, Self::Mlp, Self::Norm, Self::Head, Self::Other];

    /// By the words that the families' published names share. A norm in the attention is a norm, a
    /// projection out of the attention is of the attention.
    fn of(name: &str) -> Self {
        const WORDS: [(Role, &[&str]); 5] = [
            (Role::Norm, &["norm", "ln_"]),
            (Role::Head, &["lm_head", "output_layer", "cls.", "pooler"]),
            (Role::Embedding, &["embed", "wte", "wpe"]),
            (Role::Attention, &["attn", "attention", "query_key_value"]),
            (Role::Mlp, &["mlp", "intermediate", "output.dense"]),
        ];
        let name = name.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
        WORDS.iter().find(|(_, words)| has(words)).map_or(Self::Other, |(role, _)| *role)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Norm => "norm",
            Self::Head => "head",
            Self::Other => "other",
        })
    }
}

/// A parameter that is not loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its path in the model.
    pub name: String,
    /// Its name in the checkpoint.
    pub stored_as: String,
    /// Its shape.
    pub shape: Shape,
    /// What it is for.
    pub role: Role,
}

/// All parameters of a model, tied weights once, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// The parameters.
    pub parameters: Vec<Parameter>,
    /// Whether the model can continue a text.
    pub is_causal: bool,
}

impl Outline {
    /// What a model of `config` would load from `checkpoint`, of which no number is read.
    ///
    /// # Errors
    /// If the configuration is impossible, or a weight is missing or of another size.
    pub fn new(mut config: Config, checkpoint: &Checkpoint) -> Result<Self> {
        config.fit_to(&|name| checkpoint.has(name));
        let names = config.clone();
        let parameters = RefCell::new(Vec::new());
        let load = |name: &str, shape: Shape| {
            let known = names.checkpoint_names(name).into_iter().find(|n| checkpoint.has(n));
            let Some(stored_as) = known else { return Err(checkpoint.missing(name)) };
            let stored = checkpoint.shape(&stored_as).unwrap_or_default();
            if stored.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) != Some(shape.n_elements())
            {
                return Err(format!("`{stored_as}` has shape {stored:?}"));
            }
            let (name, role) = (name.to_owned(), Role::of(name));
            parameters.borrow_mut().push(Parameter { name, stored_as, shape, role });
            // Building only puts parameters in their places: nothing looks at this one.
            Tensor::zeros([1]).map(Some).map_err(|e| e.to_string())
        };
        let built = Model::build(config, &Source::Load { load: &load, stored: None, seed: 0 });
        let (model, _) = built.map_err(|e| checkpoint.explain(e))?;
        Ok(Self { is_causal: model.is_causal(), parameters: parameters.into_inner() })
    }

    /// Number of parameter values.
    #[must_use]
    pub fn n_values(&self) -> u64 {
        self.parameters.iter().map(Parameter::n_values).sum()
    }

    /// Number of parameter values of one role.
    #[must_use]
    pub fn n_values_of(&self, role: Role) -> u64 {
        self.parameters.iter().filter(|p| p.role == role).map(Parameter::n_values).sum()
    }

    /// Bytes of all weights with matrices in `format`. Vectors stay f32, as do matrices whose rows
    /// are no whole blocks.
    #[must_use]
    pub fn weight_bytes(&self, format: WeightFormat) -> u64 {
        let bytes = |p: &Parameter| {
            let is_matrix = p.shape.len() >= 2;
            let format =
                if is_matrix { format.that_fits(p.shape.last_dim()) } else { WeightFormat::F32 };
            p.n_values() / format.block_len() as u64 * format.block_bytes() as u64
        };
        self.parameters.iter().map(bytes).sum()
    }
}

impl Parameter {
    /// Number of its values.
    #[must_use]
    pub fn n_values(&self) -> u64 {
        self.shape.n_elements() as u64
    }
}

impl Spec {
    /// Numbers in the cache of keys and values of one sequence at full context: `2 L S K E`.
    #[must_use]
    pub fn n_cached(&self) -> u64 {
        let sizes = [self.n_layers, self.max_positions, self.n_kv_heads, self.head_dim];
        sizes.iter().fold(2u64, |n, size| n.saturating_mul(*size as u64))
    }
}

/// A tensor as it lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What its numbers are: `F32`, `BF16`, `Q4_K`, …
    pub format: String,
    /// Bytes of it in the file.
    pub n_bytes: u64,
}
