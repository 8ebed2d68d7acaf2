//! Packed labelled texts, for sequence classification.

use std::collections::{BTreeMap, BTreeSet};

use lehr_tokenizer::Tokenizer;

use super::options::{LoaderOptions, RowOf, Rows};
use super::packing::Packing;
use super::{Loader, RowSpan};
use crate::batch::{Batch, LayoutRule, int};
use crate::source::Labelled;
use crate::{Error, Result};

/// The classes of a task. A class is the index of its name: in the order of the model's head, or in
/// sorted order for a new head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSet {
    names: Vec<String>,
    classes: BTreeMap<String, usize>,
}

impl LabelSet {
    /// Collects the labels of examples and sorts them: numbers by value, other names as text. Give
    /// the held-out examples too: a class may be rare.
    ///
    /// # Errors
    /// If there are fewer than two.
    pub fn learn<'a>(examples: impl IntoIterator<Item = &'a Labelled>) -> Result<Self> {
        let names: BTreeSet<&str> = examples.into_iter().map(|e| e.label.as_str()).collect();
        let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let number = |name: &String| name.parse::<i64>().ok();
        if names.iter().all(|name| number(name).is_some()) {
            names.sort_by_key(number);
        }
        Self::from_names(names)
    }

    /// Uses the given labels in their order, as stored with a trained model.
    ///
    /// # Errors
    /// If there are fewer than two, or one occurs twice.
    pub fn from_names(names: impl IntoIterator<Item = String>) -> Result<Self> {
        let names: Vec<String> = names.into_iter().collect();
        let mut classes = BTreeMap::new();
        for (class, name) in names.iter().enumerate() {
            if let Some(first) = classes.insert(name.clone(), class) {
                return Err(Error::RepeatedLabel { label: name.clone(), first, second: class });
            }
        }
        match names.len() {
            0 | 1 => Err(Error::TooFewLabels { found: names }),
            _ => Ok(Self { names, classes }),
        }
    }

    /// Returns the names, by class.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the class of a name.
    pub fn class(&self, name: &str) -> Option<usize> {
        self.classes.get(name).copied()
    }

    /// Returns the labels of `examples` that are not in this set, and those of this set that no
    /// example has, both in order.
    pub fn compare<'a>(
        &self,
        examples: impl IntoIterator<Item = &'a Labelled>,
    ) -> (Vec<String>, Vec<String>) {
        let found: BTreeSet<_> = examples.into_iter().map(|e| e.label.as_str()).collect();
        let unknown = found.iter().filter(|label| self.class(label).is_none());
        let unused = self.names.iter().filter(|name| !found.contains(name.as_str()));
        (unknown.map(|label| (*label).to_owned()).collect(), unused.cloned().collect())
    }
}

/// Batches of labelled texts, packed into rows, each text as its own segment.
///
/// A text includes the tokenizer's special tokens and, unless the options say otherwise, ends with
/// the end-of-document token. Its last token is also the end of its entry in `sequences`. A decoder
/// predicts the class there, an encoder at the segment's first token. Rows are packed full, so
/// batches have nearly equal numbers of tokens rather than of texts. Each example appears exactly
/// once per epoch.
#[derive(Debug, Clone)]
pub struct ClassLoader {
    examples: Vec<Example>,
    packing: Packing,
    rows: Rows,
    pad: i32,
    truncated: usize,
    layout: Option<LayoutRule>,
}

#[derive(Debug, Clone)]
struct Example {
    ids: Vec<u32>,
    class: usize,
}

impl ClassLoader {
    /// Encodes and packs `examples`. A text longer than a row is cut so that its end-of-document
    /// token still fits (see [`truncated`](Self::truncated)).
    ///
    /// # Errors
    /// If the options contradict each other, there is no example, or a label is not in `labels`.
    pub fn new(
        examples: &[Labelled],
        labels: &LabelSet,
        tokenizer: &Tokenizer,
        options: LoaderOptions,
    ) -> Result<Self> {
        options.check()?;
        if examples.is_empty() {
            let (what, len) = ("labelled texts", options.seq_len);
            return Err(Error::NothingToLearn { examples: 0, what, len });
        }
        let end = tokenizer.end_of_document()?;
        let texts: Vec<&str> = examples.iter().map(|example| example.text.as_str()).collect();
        let mut truncated = 0;
        let mut encoded = Vec::with_capacity(examples.len());
        let framed = match options.ends_texts {
            true => tokenizer.encode_ended(&texts, options.seq_len)?,
            false => tokenizer.encode_framed(&texts, options.seq_len)?,
        };
        for (index, mut framed) in framed.into_iter().enumerate() {
            if framed.ids.is_empty() {
                framed.ids.push(end);
            }
            let label = &examples[index].label;
            let class = labels.class(label).ok_or_else(|| Error::UnknownLabel {
                index,
                label: label.clone(),
                known: labels.names().to_vec(),
            })?;
            // The tokens around a text are never cut, so a shorter row cannot hold them.
            if framed.ids.len() > options.seq_len {
                return Err(Error::RowTooShort {
                    what: "labelled texts",
                    seq_len: options.seq_len,
                    least: framed.ids.len(),
                });
            }
            truncated += usize::from(framed.is_cut);
            encoded.push(Example { ids: framed.ids, class });
        }
        let lengths: Vec<usize> = encoded.iter().map(|example| example.ids.len()).collect();
        let packing = Packing::new(&lengths, options.seq_len);
        let rows = Rows::new(options, packing.rows() as u64);
        Ok(Self {
            examples: encoded,
            packing,
            rows,
            pad: crate::batch::id(end),
            truncated,
            layout: None,
        })
    }

    /// Sets the positions of each text by `layout` instead of counting from 0.
    #[must_use]
    pub fn with_layout(self, layout: LayoutRule) -> Self {
        Self { layout: Some(layout), ..self }
    }

    /// Returns the number of texts cut at the length of a row.
    pub fn truncated(&self) -> usize {
        self.truncated
    }

    /// Returns the indices of the examples of batch `index`, in the order of its `sequences`.
    ///
    /// # Errors
    /// If there is no such batch.
    pub fn examples_of(&self, index: u64) -> Result<Vec<usize>> {
        let rows = self.rows.of_batch(index)?;
        Ok(rows.iter().flat_map(|of| self.packing.row(of.row, of.epoch_key)).collect())
    }

    /// Fills a batch of `batch_size` rows with `rows`, and pads what is left.
    fn batch_of(&self, batch_size: usize, rows: Vec<RowOf>) -> Result<Batch> {
        let mut batch = Batch::padding(batch_size, self.seq_len(), self.pad);
        for (row, of) in rows.into_iter().enumerate() {
            let mut start = 0;
            for example in self.packing.row(of.row, of.epoch_key) {
                let Example { ids, class } = &self.examples[example];
                batch.put_segment(row, start, ids, self.layout.as_ref())?;
                let end = start + ids.len();
                batch.label(row, (start, end), vec![int(*class)]);
                start = end;
            }
        }
        Ok(batch)
    }
}

impl Loader for ClassLoader {
    fn batches_per_epoch(&self) -> u64 {
        self.rows.batches_per_epoch()
    }

    fn batch(&self, index: u64) -> Result<Batch> {
        self.batch_of(self.batch_size(), self.rows.of_batch(index)?)
    }

    fn rows(&self, span: RowSpan) -> Result<Batch> {
        self.rows.expect_whole(span)?;
        self.batch_of(span.n_rows, self.rows.of_span(span, 1))
    }

    fn batch_size(&self) -> usize {
        self.rows.options.batch_size
    }

    fn seq_len(&self) -> usize {
        self.rows.options.seq_len
    }
}
