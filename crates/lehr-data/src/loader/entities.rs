//! Packed texts with named entities, for token classification.

use lehr_tokenizer::Tokenizer;

use super::options::{LoaderOptions, RowOf, Rows};
use super::packing::Packing;
use super::{Loader, RowSpan};
use crate::batch::{Batch, LayoutRule, int};
use crate::entities::{TagSet, TaggedText, WordToken, word_rows};
use crate::{Error, Result};

/// Batches of texts with named entities, packed into rows, each text as its own segment.
///
/// Each word has one target, the class of its tag, at its first or last token. A text that is
/// longer than a row is spread over several segments; no word is left out.
#[derive(Debug, Clone)]
pub struct EntityLoader {
    examples: Vec<Example>,
    packing: Packing,
    rows: Rows,
    pad: i32,
    counts: WordCounts,
    layout: Option<LayoutRule>,
}

#[derive(Debug, Clone)]
struct Example {
    ids: Vec<u32>,
    /// Positions and their classes.
    targets: Vec<(usize, usize)>,
}

/// What became of the words of a data set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WordCounts {
    /// All words.
    pub words: usize,
    /// Words without a token, which cannot be tagged.
    pub without_token: usize,
    /// Words whose tokens do not fit into a row.
    pub cut: usize,
    /// Texts that are spread over several rows.
    pub divided: usize,
}

impl EntityLoader {
    /// Encodes and packs `texts`.
    ///
    /// # Errors
    /// If the options contradict each other, there is no text, or the type of an entity is not
    /// among `tags`.
    pub fn new(
        texts: &[TaggedText],
        tags: &TagSet,
        tokenizer: &Tokenizer,
        token: WordToken,
        options: LoaderOptions,
    ) -> Result<Self> {
        options.check()?;
        let parts: Vec<_> = texts.iter().map(TaggedText::parts).collect();
        let mut counts = WordCounts::default();
        let mut examples = Vec::with_capacity(texts.len());
        let encoded = word_rows(tokenizer, &parts, token, options.seq_len)?;
        for (text, rows) in texts.iter().zip(encoded) {
            let classes = tags.classes(text.words.len(), &text.entities)?;
            let n_tagged: usize = rows.iter().map(|row| row.places.len()).sum();
            counts.words += classes.len();
            counts.without_token += classes.len() - n_tagged;
            counts.divided += usize::from(rows.len() > 1);
            for row in rows.into_iter().filter(|row| !row.places.is_empty()) {
                counts.cut += row.n_cut;
                let targets = row.places.iter().map(|&(word, at)| (at, classes[word])).collect();
                examples.push(Example { ids: row.ids, targets });
            }
        }
        if examples.is_empty() {
            let (what, len) = ("texts with entities", options.seq_len);
            return Err(Error::NothingToLearn { examples: texts.len(), what, len });
        }
        let lengths: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
        let packing = Packing::new(&lengths, options.seq_len);
        let rows = Rows::new(options, packing.rows() as u64);
        let pad = crate::batch::id(tokenizer.end_of_document()?);
        Ok(Self { examples, packing, rows, pad, counts, layout: None })
    }

    /// Sets the positions of each text by `layout` instead of counting from 0.
    #[must_use]
    pub fn with_layout(self, layout: LayoutRule) -> Self {
        Self { layout: Some(layout), ..self }
    }

    /// Returns what became of the words.
    pub fn counts(&self) -> WordCounts {
        self.counts
    }

    /// Fills a batch of `batch_size` rows with `rows`, and pads what is left.
    fn batch_of(&self, batch_size: usize, rows: Vec<RowOf>) -> Result<Batch> {
        let mut batch = Batch::padding(batch_size, self.seq_len(), self.pad);
        for (row, of) in rows.into_iter().enumerate() {
            let mut start = 0;
            for example in self.packing.row(of.row, of.epoch_key) {
                let Example { ids, targets } = &self.examples[example];
                batch.put_segment(row, start, ids, self.layout.as_ref())?;
                for (at, class) in targets {
                    batch.set_class(row, start + at, int(*class));
                }
                start += ids.len();
            }
        }
        Ok(batch)
    }
}

impl Loader for EntityLoader {
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
