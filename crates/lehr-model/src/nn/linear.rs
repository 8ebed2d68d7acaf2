//! The affine layer, the only place where a weight matrix is applied.

use std::sync::Arc;

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::linear::{Affine, WeightLayout};
use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::{
    Device, Init, MatrixForm, OutputParts, Param, Result, Role, Tensor, Weight, is_recording,
};

use super::builder::init;
use super::{Embedding, LayerBuilder};
use crate::adapt::{Adapter, BaseLayer};

/// `y = x Wᵀ + bias`.
///
/// Architectures do not know how the weight is stored or adapted. Each method multiplies a
/// quantised weight in its stored format and applies the adapter.
#[derive(Clone)]
pub struct Linear {
    path: String,
    weight: Weight,
    layout: WeightLayout,
    bias: Option<Param>,
    adapter: Option<Arc<dyn Adapter>>,
    is_tied: bool,
}

/// A layer as its adapter sees it.
struct Unadapted<'a>(&'a Linear);

impl BaseLayer for Unadapted<'_> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.base(x)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.0.apply(x, &None)
    }

    fn bias(&self) -> Option<Tensor> {
        self.0.bias()
    }
}

/// Rows whose logits over a stored head exist at once: 64 MiB for a vocabulary of 256 Ki ids.
const LOGIT_ROWS: usize = 64;
/// The target of a row without a label.
const NO_LABEL: i32 = -100;

/// The shape and layout of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Number of inputs.
    pub n_in: usize,
    /// Number of outputs.
    pub n_out: usize,
    /// Memory layout of the weight.
    pub layout: WeightLayout,
    /// Whether it has a bias.
    pub bias: bool,
    /// The maps that share the weight, for optimisers that treat a matrix as a whole.
    pub parts: OutputParts,
}

impl LinearShape {
    /// Describes a weight `[out, in]` without bias.
    #[must_use]
    pub fn new(n_in: usize, n_out: usize) -> Self {
        let parts = OutputParts::Whole;
        Self { n_in, n_out, layout: WeightLayout::OutIn, bias: false, parts }
    }

    /// Sets whether the layer has a bias.
    #[must_use]
    pub fn with_bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// Names the maps that share the weight.
    #[must_use]
    pub fn with_parts(self, parts: OutputParts) -> Self {
        Self { parts, ..self }
    }

    /// Selects the weight layout `[in, out]`.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { layout: WeightLayout::InOut, ..self }
    }
}

impl Linear {
    /// Builds a layer for `role`. The weight starts normal with `std`, or at 0; the bias at 0.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(
        p: &mut LayerBuilder<'_>,
        role: Role,
        shape: LinearShape,
        std: f32,
    ) -> Result<Self> {
        let LinearShape { n_in, n_out, layout, bias, parts } = shape;
        let transposed = layout == WeightLayout::InOut;
        let sides = if transposed { [n_in, n_out] } else { [n_out, n_in] };
        let weight = p.matrix("weight", role, sides, transposed, init(std))?;
        if let Weight::Param(weight) = &weight {
            weight.set_form(MatrixForm { transposed, parts });
        }
        let bias = match bias {
            true => Some(p.param("bias", Role::Bias, [n_out], Init::Constant(0.0))?),
            false => None,
        };
        let (path, adapter) = (p.path().to_owned(), p.adapter(role, shape, &weight)?);
        Ok(Self { path, weight, layout, bias, adapter, is_tied: false })
    }

    /// Builds a head at the current path that shares the weight of the token embedding.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn tied(p: &mut LayerBuilder<'_>, embedding: &Embedding) -> Result<Self> {
        let (path, weight) = (p.path().to_owned(), embedding.weight.clone());
        let shape = LinearShape::new(embedding.width, embedding.n_rows);
        let adapter = p.adapter(Role::Head, shape, &weight)?;
        let layout = WeightLayout::OutIn;
        Ok(Self { path, weight, layout, bias: None, adapter, is_tied: true })
    }

    /// Builds the language-model head of a decoder at the current path: tied to the embedding, or
    /// with its own weight. `None` if the source has no head
    /// ([`LayerBuilder::without_head`]).
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn head(
        p: &mut LayerBuilder<'_>,
        embedding: &Embedding,
        is_tied: bool,
        std: f32,
    ) -> Result<Option<Self>> {
        if is_tied {
            return Self::tied(p, embedding).map(Some);
        }
        if !p.has_head() {
            return Ok(None);
        }
        let shape = LinearShape::new(embedding.width, embedding.n_rows);
        Self::build(p, Role::Head, shape, std).map(Some)
    }

    /// Returns the layer with `bias` `[out]` added.
    #[must_use]
    pub fn with_bias(self, bias: Param) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// Returns the path: the name of the weight in checkpoints without `.weight`. For a tied head
    /// it is the name that an untied one would have.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns whether the weight is that of the token embedding.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.is_tied
    }

    /// Returns the bias as a tensor, if there is one.
    fn bias(&self) -> Option<Tensor> {
        self.bias.as_ref().map(Param::tensor)
    }

    /// Builds the layer around a weight that is a parameter.
    fn map<'a>(&self, weight: &'a Tensor, bias: &'a Option<Tensor>) -> Affine<'a> {
        let fp8 = self.weight.param().is_some_and(Param::is_fp8);
        Affine { weight, layout: self.layout, bias: bias.as_ref(), fp8 }
    }

    /// Returns the weight as a parameter if it is one and has no adapter. Fused products need that.
    fn plain(&self) -> Option<&Param> {
        self.weight.param().filter(|_| self.adapter.is_none())
    }

    /// Applies the layer: `x [.., I]` to `[.., O]`.
    ///
    /// # Errors
    /// If the width of `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.adapter {
            None => self.base(x),
            Some(adapter) => adapter.forward(x, &Unadapted(self)),
        }
    }

    /// Applies the layer without its adapter.
    fn base(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, &self.bias())
    }

    fn apply(&self, x: &Tensor, bias: &Option<Tensor>) -> Result<Tensor> {
        match &self.weight {
            Weight::Param(w) => x.affine(self.map(&w.tensor(), bias)),
            Weight::Stored(w) => x.linear_q(w, bias.as_ref()),
        }
    }

    /// Computes `down(act(up(x)))`, the plain MLP of GPT-2 and BERT. If both weights are plain
    /// parameters, only `up(x)` is kept for backward.
    ///
    /// # Errors
    /// If the widths do not fit.
    pub fn feed_forward(x: &Tensor, up: &Self, act: Activation, down: &Self) -> Result<Tensor> {
        let (up_bias, down_bias) = (up.bias(), down.bias());
        match (up.plain(), down.plain()) {
            (Some(up_weight), Some(down_weight)) => {
                let (up_weight, down_weight) = (up_weight.tensor(), down_weight.tensor());
                let (wide, narrow) =
                    (up.map(&up_weight, &up_bias), down.map(&down_weight, &down_bias));
                x.feed_forward(wide, act, narrow)
            }
            (None, Some(w)) => up.forward(x)?.act_linear(act, down.map(&w.tensor(), &down_bias)),
            (_, None) => down.forward(&up.forward(x)?.activation(act)?),
        }
    }

    /// Computes `forward(act(gate) ⊙ up)`. If the weight is a plain parameter, the product is
    /// recomputed in backward instead of kept.
    ///
    /// # Errors
    /// If the widths do not fit.
    pub fn forward_gated(&self, gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
        match self.plain() {
            Some(w) => gate.gated_linear(up, act, self.map(&w.tensor(), &self.bias())),
            None => self.forward(&gate.gated(up, act)?),
        }
    }

    /// Computes the cross-entropy `[1]` of `targets` (i32 `[..]`, −100 = not supervised), with the
    /// outputs at `x [.., I]` as logits. Logits are materialised only if the layer has an adapter.
    ///
    /// # Errors
    /// If shapes do not fit, a target is out of range or memory runs out.
    pub fn cross_entropy(
        &self,
        x: &Tensor,
        targets: &Tensor,
        options: CrossEntropy,
    ) -> Result<Tensor> {
        if self.adapter.is_some() {
            return self.forward(x)?.cross_entropy(targets, options);
        }
        let bias = self.bias();
        match &self.weight {
            Weight::Param(w) => {
                x.linear_cross_entropy(&w.tensor(), bias.as_ref(), targets, options)
            }
            Weight::Stored(w) => x.linear_cross_entropy(w, bias.as_ref(), targets, options),
        }
    }

    /// Computes the log-probability `[..]` of each target (i32 `[..]`, −100 = none, gives 0), with
    /// the outputs at `x [.., I]` as logits. `softcap` caps the logits.
    ///
    /// # Errors
    /// As [`Linear::cross_entropy`].
    pub fn token_logprobs(
        &self,
        x: &Tensor,
        targets: &Tensor,
        softcap: Option<f32>,
    ) -> Result<Tensor> {
        if self.adapter.is_some() {
            return self.forward(x)?.cross_entropy_rows(targets, 0.0, softcap)?.scale(-1.0);
        }
        let bias = self.bias();
        match &self.weight {
            Weight::Param(w) => x.token_logprobs(&w.tensor(), bias.as_ref(), targets, softcap),
            // The same numbers as the logits that generation chooses from, whose product rounds `x`
            // to 8 bits for some formats. The op multiplies by the weight in floats.
            Weight::Stored(_) if x.device() == Device::Cpu && !is_recording() => {
                self.generated_logprobs(x, targets, softcap)
            }
            Weight::Stored(w) => x.token_logprobs(w, bias.as_ref(), targets, softcap),
        }
    }

    /// [`Linear::token_logprobs`] from logits, of a few labelled rows at a time.
    fn generated_logprobs(
        &self,
        x: &Tensor,
        targets: &Tensor,
        softcap: Option<f32>,
    ) -> Result<Tensor> {
        let (width, ids) = (x.shape().last_dim(), targets.ids());
        let x = x.reshape([ids.len(), width])?;
        let labelled: Vec<i32> =
            (0..).zip(ids).filter(|(_, id)| **id != NO_LABEL).map(|(i, _)| i).collect();
        let mut out = vec![0.0; ids.len()];
        for rows in labelled.chunks(LOGIT_ROWS) {
            let targets: Vec<i32> = rows.iter().map(|i| ids[*i as usize]).collect();
            let n = [rows.len()];
            let logits = self.base(&x.gather_rows(&Tensor::from_ids(rows, n)?)?)?;
            let losses =
                logits.cross_entropy_rows(&Tensor::from_ids(&targets, n)?, 0.0, softcap)?;
            for (i, loss) in rows.iter().zip(losses.data()) {
                out[*i as usize] = -loss;
            }
        }
        Tensor::from_slice(&out, targets.shape())
    }
}
