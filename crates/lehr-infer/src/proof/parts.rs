//! Comparison of the parts of a model beside its weights.

use std::collections::BTreeSet;
use std::path::Path;

use lehr_model::io::Checkpoint;
use lehr_model::{Classifier, Model, Tagger, Tokens};
use lehr_tensor::{Tensor, no_grad};
use lehr_tokenizer::Tokenizer;

use super::texts::other_ids;
use super::{Fault, Part, Proof, relative_error, tokenizer_faults};
use crate::convert::Target;
use crate::load::{gguf_metadata, template_parts_of};
use crate::pooling::Settings;
use crate::{Embedder, Result, tokenizer_of};

/// Texts for classifiers and embedders, in lower case: GGUF cannot say that texts are lower-cased.
const TEXTS: [&str; 4] = [
    "the bridge is open again, and it is better than before.",
    "nobody liked the new timetable",
    "会议于下午三点开始 — très bien",
    "1 2 3",
];

/// The logits of a small head and the vectors of few texts may differ this many times more than the
/// logits of a vocabulary, in which errors average out.
const HEAD_FACTOR: f64 = 5.0;

/// A model and its copy.
pub(crate) struct Pair<'a> {
    pub(crate) source: &'a Path,
    /// The folder or file of the source's tokenizer and chat template.
    pub(crate) texts: &'a Path,
    pub(crate) copy: &'a Path,
    pub(crate) target: Target,
    /// Whether the copy has an adapter merged into its weights, so that vectors and logits of the
    /// source alone are not its own.
    pub(crate) is_adapted: bool,
}

impl Pair<'_> {
    /// Compares tokenizers, end ids, chat templates, pooling, and the tensors `extra` that the
    /// model does not use, such as the head of a classifier.
    pub(crate) fn compare_parts(
        &self,
        tokenizer: Option<&Tokenizer>,
        sample: &str,
        extra: &[String],
        proof: &mut Proof,
    ) -> Result<()> {
        if let Some(tokenizer) = tokenizer {
            let copied = tokenizer_of(self.copy)?;
            let mut faults = tokenizer_faults(tokenizer, &copied);
            let other = other_ids(tokenizer, &copied, sample);
            faults.extend(other.map(|text| Fault { part: Part::Tokenizer, text }));
            proof.same_ids = Some(faults.is_empty());
            proof.differences.extend(faults);
            self.compare_ends(tokenizer, &copied, proof)?;
            self.compare_pooling(proof)?;
        }
        self.compare_tensors(extra, proof)?;
        if matches!(self.target, Target::Folder(_)) && Classifier::is_classifier(self.source) {
            let labels = |model: &Classifier| model.labels().to_vec();
            self.compare_labels(Classifier::load, labels, |m| logits(m, tokenizer), proof)?;
        }
        if matches!(self.target, Target::Folder(_)) && Tagger::is_tagger(self.source) {
            let labels = |model: &Tagger| model.labels().to_vec();
            self.compare_labels(Tagger::load, labels, |m| logits_of_words(m, tokenizer), proof)?;
        }
        Ok(())
    }

    fn is_folder(&self) -> bool {
        matches!(self.target, Target::Folder(_))
    }

    fn compare_ends(
        &self,
        tokenizer: &Tokenizer,
        copied: &Tokenizer,
        proof: &mut Proof,
    ) -> Result<()> {
        let (want, found) = (template_parts_of(self.texts)?, template_parts_of(self.copy)?);
        let ids = |parts: &[u32], tokenizer: &Tokenizer| -> BTreeSet<u32> {
            parts.iter().copied().chain(tokenizer.end_of_document().ok()).collect()
        };
        let (ends, copied) = (ids(&want.eos_ids, tokenizer), ids(&found.eos_ids, copied));
        // GGUF has keys for three; the conversion names those it loses.
        let is_short = !self.is_folder() && copied.len() >= 3 && copied.is_subset(&ends);
        if ends != copied && !is_short {
            let text = format!("{copied:?}, expected {ends:?}");
            proof.differences.push(Fault { part: Part::EndIds, text });
        }
        proof.compared.push(Part::EndIds);
        if want.jinja != found.jinja {
            let text = "it is not the source's".to_owned();
            proof.differences.push(Fault { part: Part::Template, text });
        }
        proof.compared.extend(want.jinja.is_some().then_some(Part::Template));
        Ok(())
    }

    /// Compares vectors of texts, where the source names a pooling that lehr has.
    fn compare_pooling(&self, proof: &mut Proof) -> Result<()> {
        let is_named = match gguf_metadata(self.source)? {
            Some(metadata) => Settings::of_gguf(self.source, &metadata)?.pooling.is_some(),
            None => {
                let names = self.source.join("modules.json").is_file();
                names && Settings::read(self.source).is_ok()
            }
        };
        let Some(source) = is_named.then(|| Embedder::open(self.source).ok()).flatten() else {
            return Ok(());
        };
        let copy = Embedder::open(self.copy)?;
        let mut add = |text: String| {
            proof.differences.push(Fault { part: Part::Pooling, text });
        };
        if source.pooling() != copy.pooling() {
            add(format!("{:?}, expected {:?}", copy.pooling(), source.pooling()));
        }
        if self.is_folder() && source.max_tokens() != copy.max_tokens() {
            let (found, want) = (copy.max_tokens(), source.max_tokens());
            add(format!("texts are cut at {found} tokens, expected {want}"));
        }
        if self.is_adapted {
            proof.compared.push(Part::Pooling);
            return Ok(());
        }
        // A GGUF file has no place for the prompt before each text, nor for its longest length.
        let longest = source.max_tokens();
        let plain = |embedder: Embedder| embedder.with_prefix("").with_max_tokens(longest);
        let (source, copy) = match self.is_folder() {
            true => (source, copy),
            false => (plain(source), plain(copy)),
        };
        let (want, found) = (source.embed(&TEXTS)?, copy.embed(&TEXTS)?);
        let error = relative_error(want.vectors.data(), found.vectors.data());
        let most = HEAD_FACTOR * proof.bounds.error + 1e-5;
        // Formats of few bits are multiplied in integers, whose rounding is not that of the proof.
        let is_float = self.is_folder() || proof.bounds.error < 0.03;
        if is_float && (error.is_nan() || error > most) {
            add(format!("relative error {error:.3e} of vectors, expected at most {most:.1e}"));
        }
        proof.compared.push(Part::Pooling);
        Ok(())
    }

    /// Compares tensors that the model does not use.
    fn compare_tensors(&self, names: &[String], proof: &mut Proof) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let (source, copy) = (Checkpoint::open(self.source)?, Checkpoint::open(self.copy)?);
        for name in names {
            let shape = source.shape(name).unwrap_or_default().to_vec();
            let want = source.tensor(name, (&shape).into())?;
            let error = match copy.tensor(name, (&shape).into()) {
                Ok(found) => relative_error(want.data(), found.data()),
                Err(_) => f64::INFINITY,
            };
            if error.is_nan() || error > proof.bounds.error {
                let most = proof.bounds.error;
                let text = format!("`{name}` is off by {error:.3e}, expected at most {most:.1e}");
                proof.differences.push(Fault { part: Part::Head, text });
            }
        }
        proof.compared.push(Part::Head);
        Ok(())
    }

    /// Compares labels and logits of two models with a head for labels, which `load` opens.
    fn compare_labels<M>(
        &self,
        load: impl Fn(&Path) -> lehr_model::Result<M>,
        labels: impl Fn(&M) -> Vec<String>,
        logits: impl Fn(&M) -> Result<Vec<f32>>,
        proof: &mut Proof,
    ) -> Result<()> {
        // A head that lehr does not know was compared tensor by tensor.
        let Ok(source) = load(self.source) else { return Ok(()) };
        let want = match self.is_adapted {
            true => None,
            false => Some(logits(&source)?),
        };
        let expected = labels(&source);
        drop(source);
        let copy = load(self.copy)?;
        let found = labels(&copy);
        if found != expected {
            let text = format!("{found:?}, expected {expected:?}");
            proof.differences.push(Fault { part: Part::Labels, text });
        }
        if let Some(want) = want {
            let error = relative_error(&want, &logits(&copy)?);
            let most = HEAD_FACTOR * proof.bounds.error;
            if error.is_nan() || error > most {
                let text =
                    format!("relative error {error:.3e} of logits, expected at most {most:.1e}");
                proof.differences.push(Fault { part: Part::Head, text });
            }
        }
        proof.compared.extend([Part::Head, Part::Labels]);
        proof.compared.dedup();
        Ok(())
    }
}

/// Computes the logits of a classifier for a few texts, or for a few ids without a tokenizer.
fn logits(classifier: &Classifier, tokenizer: Option<&Tokenizer>) -> Result<Vec<f32>> {
    let mut logits = Vec::new();
    for ids in texts(classifier.model(), tokenizer)? {
        let end = Tensor::from_ids(&[ids.len() as i32 - 1], [1])?;
        let tokens = Tokens::new(&ids, 1, 0)?;
        let row = no_grad(|| classifier.logits(&tokens, &end))?;
        logits.extend_from_slice(row.to_host()?.data());
    }
    Ok(logits)
}

/// Computes the logits of all tokens of the same texts.
fn logits_of_words(tagger: &Tagger, tokenizer: Option<&Tokenizer>) -> Result<Vec<f32>> {
    let mut logits = Vec::new();
    for ids in texts(tagger.model(), tokenizer)? {
        let places: Vec<i32> = (0..ids.len() as i32).collect();
        let places = Tensor::from_ids(&places, [places.len()])?;
        let tokens = Tokens::new(&ids, 1, 0)?;
        let rows = no_grad(|| tagger.logits(&tokens, &places))?;
        logits.extend_from_slice(rows.to_host()?.data());
    }
    Ok(logits)
}

/// Returns the ids of a few texts, or a few ids without a tokenizer.
fn texts(model: &Model, tokenizer: Option<&Tokenizer>) -> Result<Vec<Vec<i32>>> {
    let spec = model.spec();
    let texts = match tokenizer {
        Some(tokenizer) => {
            let framed = tokenizer.encode_ended(&TEXTS, spec.max_positions)?;
            framed.into_iter().map(|framed| framed.ids).collect()
        }
        None => vec![(0..spec.max_positions.min(16) as u32).collect::<Vec<_>>()],
    };
    let signed = |ids: Vec<u32>| ids.into_iter().map(|id| id as i32).collect();
    Ok(texts.into_iter().map(signed).collect())
}
