//! A classifier with its tokenizer.

use std::path::Path;

use anyhow::Result;
use lehr_infer::{check_vocabulary, resolve_model, tokenizer_of};
use lehr_model::Classifier;
use lehr_tensor::{Tensor, no_grad};
use lehr_tokenizer::Tokenizer;

use crate::cmd::compute::DeviceArgs;
use crate::cmd::pass::{PASS_TOKENS, TextPass};
use crate::fail::Hinted;

/// A classifier of texts.
pub(crate) struct TextClassifier {
    classifier: Classifier,
    tokenizer: Tokenizer,
}

/// The probabilities of the labels of texts.
pub(crate) struct Probabilities {
    /// For each text that of each label.
    pub(crate) of_texts: Vec<Vec<f32>>,
    /// Texts whose end was cut.
    pub(crate) n_cut: usize,
}

impl TextClassifier {
    /// Opens a run, or a folder of a classifier, on a device.
    pub(crate) fn open(path: &Path, device: &DeviceArgs) -> Result<Self> {
        let dir = resolve_model(path)?;
        let mut classifier = Classifier::load(&dir)?;
        let tokenizer = tokenizer_of(&dir)?;
        if let Some(warning) = check_vocabulary(&dir, &tokenizer, classifier.model())? {
            classifier.model_mut().warn(warning);
        }
        device.place(classifier.model())?;
        Ok(Self { classifier, tokenizer })
    }

    /// Returns the labels, in the order of their probabilities.
    pub(crate) fn labels(&self) -> &[String] {
        self.classifier.labels()
    }

    /// Returns the number of tokens at which texts are cut.
    pub(crate) fn tokens_max(&self) -> usize {
        self.classifier.model().spec().max_positions.min(PASS_TOKENS)
    }

    /// Computes the probabilities of the labels of `texts`.
    pub(crate) fn probabilities(&self, texts: &[&str]) -> Result<Probabilities> {
        let limit = self.tokens_max();
        let mut framed = match self.classifier.ends_texts() {
            true => self.tokenizer.encode_ended(texts, limit)?,
            false => self.tokenizer.encode_framed(texts, limit)?,
        };
        let end = self.tokenizer.end_of_document()?;
        framed.iter_mut().filter(|f| f.ids.is_empty()).for_each(|f| f.ids.push(end));
        let n_cut = framed.iter().filter(|framed| framed.is_cut).count();
        let ids: Vec<&[u32]> = framed.iter().map(|framed| framed.ids.as_slice()).collect();
        let mut of_texts = Vec::with_capacity(texts.len());
        while of_texts.len() < texts.len() {
            let rest = &ids[of_texts.len()..];
            let pass = TextPass::of(self.classifier.model(), &self.tokenizer, rest)?;
            let last = |(start, ids): (&usize, &&[u32])| (start + ids.len() - 1) as i32;
            let ends: Vec<i32> = pass.starts.iter().zip(rest).map(last).collect();
            let ends = Tensor::from_ids(&ends, [ends.len()])?;
            let logits = no_grad(|| self.classifier.logits(&pass.tokens, &ends))?;
            let rows = logits.softmax()?.to_host()?;
            of_texts.extend(rows.data().chunks(self.labels().len()).map(<[f32]>::to_vec));
        }
        let bad = of_texts.iter().position(|row| row.iter().any(|p| !p.is_finite()));
        match bad {
            None => Ok(Probabilities { of_texts, n_cut }),
            Some(at) => Err(Hinted::error(
                format!(
                    "labelling {:?}: the probabilities are {:?}, expected numbers",
                    texts[at], of_texts[at]
                ),
                "the weights are damaged, or the computation overflows: try --dtype f32",
            )),
        }
    }
}

/// Returns the index of the largest probability.
pub(crate) fn best(probabilities: &[f32]) -> usize {
    let larger = |a: &usize, b: &usize| probabilities[*a].total_cmp(&probabilities[*b]);
    (0..probabilities.len()).max_by(larger).unwrap_or(0)
}
