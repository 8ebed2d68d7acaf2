//! Packed conversations, for supervised fine-tuning.

use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::{ChatTemplate, Rendered};

use super::chat::Renderer;
use super::options::{LoaderOptions, RowOf, Rows};
use super::packing::Packing;
use super::{Loader, RowSpan};
use crate::batch::{Batch, LayoutRule};
use crate::source::{Conversation, Pass, Reading};
use crate::{Error, Result};

/// Batches of conversations, packed into rows, each conversation as its own segment.
///
/// A conversation of L tokens takes L - 1 positions, because its last token is only a target. Only
/// the assistant's tokens are targets, by the template's loss mask. Each example appears exactly
/// once per epoch.
#[derive(Debug, Clone)]
pub struct SftLoader {
    examples: Vec<Rendered>,
    packing: Packing,
    rows: Rows,
    byte_lengths: Vec<u32>,
    pad: i32,
    truncated: usize,
    dropped: usize,
    answers: Answers,
    layout: Option<LayoutRule>,
}

/// Numbers of supervised stretches of tokens: the assistant's turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// All answers of the data.
    pub all: usize,
    /// Those that lost tokens, or all of them, because their conversation was cut.
    pub cut: usize,
}

/// Counts the positions that each conversation takes in a row when it is not cut.
///
/// # Errors
/// If a conversation cannot be rendered whole and `reading` does not skip it.
pub fn conversation_lengths(
    conversations: &[Conversation],
    renderer: &Renderer<'_>,
    reading: &Reading,
) -> Result<Vec<usize>> {
    let mut pass = Pass::over(reading);
    let mut lengths = Vec::with_capacity(conversations.len());
    for conversation in conversations {
        match renderer.render(conversation, &mut pass) {
            Ok(example) => lengths.push(example.ids.len().saturating_sub(1).max(1)),
            Err(error) => pass.bad(error)?,
        }
    }
    pass.end()?;
    Ok(lengths)
}

/// Counts the stretches of supervised tokens.
fn stretches(loss_mask: &[bool]) -> usize {
    loss_mask.chunk_by(|a, b| a == b).filter(|stretch| stretch[0]).count()
}

impl SftLoader {
    /// Renders and packs `conversations`. Cuts the end of one that is longer than a row
    /// ([`truncated`](Self::truncated)), and drops one without supervised tokens
    /// ([`dropped`](Self::dropped)).
    ///
    /// # Errors
    /// If the options contradict each other, a conversation cannot be rendered, or no supervised
    /// token is left.
    pub fn new(
        conversations: &[Conversation],
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        options: LoaderOptions,
    ) -> Result<Self> {
        let renderer = Renderer { tokenizer, template };
        Self::with_reading(conversations, &renderer, options, &Reading::default())
    }

    /// Renders and packs `conversations` as [`new`](Self::new) does. Conversations that cannot be
    /// rendered whole are bad records of `reading`, and fields that the template does not write
    /// are among its notes.
    ///
    /// # Errors
    /// As [`new`](Self::new); bad records only if `reading` does not skip them.
    pub fn with_reading(
        conversations: &[Conversation],
        renderer: &Renderer<'_>,
        options: LoaderOptions,
        reading: &Reading,
    ) -> Result<Self> {
        options.check()?;
        let tokenizer = renderer.tokenizer;
        let mut pass = Pass::over(reading);
        let (mut examples, mut truncated, mut dropped) = (Vec::new(), 0, 0);
        let mut answers = Answers::default();
        let room = options.seq_len + 1;
        for conversation in conversations {
            let mut example = match renderer.render(conversation, &mut pass) {
                Ok(example) => example,
                Err(error) => {
                    pass.bad(error)?;
                    continue;
                }
            };
            pass.good();
            let n_answers = stretches(&example.loss_mask);
            answers.all += n_answers;
            if example.ids.len() > room {
                // No end of turn is put at the cut: the model must not learn to stop there.
                let is_within = example.loss_mask[room - 1] && example.loss_mask[room];
                let n_left = stretches(&example.loss_mask[..room]);
                answers.cut += n_answers - n_left + usize::from(is_within);
                example.ids.truncate(room);
                example.loss_mask.truncate(room);
                truncated += 1;
            }
            match example.loss_mask[1..].contains(&true) {
                true => examples.push(example),
                false => dropped += 1,
            }
        }
        pass.end()?;
        if examples.is_empty() {
            return Err(Error::NothingToLearn {
                examples: conversations.len(),
                what: "conversations",
                len: options.seq_len,
            });
        }
        let lengths: Vec<usize> = examples.iter().map(|example| example.ids.len() - 1).collect();
        let packing = Packing::new(&lengths, options.seq_len);
        let rows = Rows::new(options, packing.rows() as u64);
        let byte_lengths = tokenizer.byte_lengths();
        let pad = crate::batch::id(tokenizer.end_of_document()?);
        Ok(Self {
            examples,
            packing,
            rows,
            byte_lengths,
            pad,
            truncated,
            dropped,
            answers,
            layout: None,
        })
    }

    /// Sets the positions of each conversation by `layout` instead of counting from 0.
    #[must_use]
    pub fn with_layout(self, layout: LayoutRule) -> Self {
        Self { layout: Some(layout), ..self }
    }

    /// Returns the number of conversations in the batches.
    pub fn examples(&self) -> usize {
        self.examples.len()
    }

    /// Returns the number of conversations cut at the length of a row.
    pub fn truncated(&self) -> usize {
        self.truncated
    }

    /// Returns the number of conversations dropped because no supervised token is left after the
    /// cut.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Returns the number of answers, and of those that were cut.
    pub fn answers(&self) -> Answers {
        self.answers
    }

    fn fill(&self, batch: &mut Batch, row: usize, start: usize, example: &Rendered) -> Result<()> {
        let n = example.ids.len() - 1;
        batch.put_segment(row, start, &example.ids[..n], self.layout.as_ref())?;
        for t in 0..n {
            if example.loss_mask[t + 1] {
                batch.set_target(row, start + t, example.ids[t + 1], &self.byte_lengths);
            }
        }
        Ok(())
    }

    /// Fills a batch of `batch_size` rows with `rows`, and pads what is left.
    fn batch_of(&self, batch_size: usize, rows: Vec<RowOf>) -> Result<Batch> {
        let mut batch = Batch::padding(batch_size, self.seq_len(), self.pad);
        for (row, of) in rows.into_iter().enumerate() {
            let mut start = 0;
            for example in self.packing.row(of.row, of.epoch_key) {
                let example = &self.examples[example];
                self.fill(&mut batch, row, start, example)?;
                start += example.ids.len() - 1;
            }
        }
        Ok(batch)
    }
}

impl Loader for SftLoader {
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
