//! Checks training data: which tokens the loss covers, and what looks wrong.
//!
//! The check reads the batches of the real loader, so it shows exactly what is trained.

use std::collections::HashMap;
use std::ops::Range;

use lehr_data::{Batch, Sequence};
use lehr_eval::report::{Marked, Report};
use lehr_model::io::write_file;
use lehr_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::recipe::ObjectiveKind;
use crate::{Error, Recipe, Result, RunDir, Task};

/// The file in the run directory.
const FILE: &str = "data.json";
/// Maximum number of tokens that are read.
const TOKENS_MAX: usize = 2_000_000;

/// Counts and examples from the first pass over the data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataCheck {
    /// Batches of a pass.
    pub batches: u64,
    /// Batches that were read: all, or the first ones of much data.
    pub batches_read: u64,
    /// Examples in those: documents, conversations, texts, or parts of long ones.
    pub examples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Tokens, words or texts that are learnt.
    pub targets: u64,
    /// Padding positions.
    pub padding: u64,
    /// Examples without anything that is learnt.
    pub without_target: u64,
    /// Examples whose last learnt token ends a text or a turn.
    pub ended: u64,
    /// Examples that begin with the same special token twice.
    pub begun_twice: u64,
    /// Some examples.
    pub previews: Vec<Preview>,
    kind: Option<ObjectiveKind>,
}

/// A training example, split into parts with and without loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preview {
    /// Its text.
    pub parts: Vec<PreviewPart>,
    /// The label of a text that is classified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Consecutive tokens that are either all learnt or all not learnt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreviewPart {
    /// Their text; special tokens by name.
    pub text: String,
    /// Whether they are learnt.
    pub learnt: bool,
    /// The tag that is learnt for the word that begins or ends here, if it is not `O`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

impl DataCheck {
    /// Reads the batches of a task, and keeps `n_previews` examples.
    ///
    /// # Errors
    /// If a batch cannot be read.
    pub fn new(task: &Task, recipe: &Recipe, n_previews: usize) -> Result<Self> {
        let loader = &task.train;
        let batches = loader.batches_per_epoch();
        let per_batch = (loader.batch_size() * loader.seq_len()).max(1);
        let batches_read = batches.min((TOKENS_MAX / per_batch).max(1) as u64);
        let reader = Reader {
            kind: recipe.objective,
            tokenizer: task.objective.tokenizer(),
            ends: ends(task)?,
            labels: labels(&task.objective.config_json()),
        };
        let kind = Some(recipe.objective);
        let mut check = Self { batches, batches_read, kind, ..Self::default() };
        for index in 0..batches_read {
            let batch = loader.batch(index)?;
            let labels = labels_by_start(&batch);
            for row in 0..batch.batch_size {
                for at in segments(&batch, row) {
                    let labels = labels.get(&at.start).copied();
                    check.add(&reader, &batch, &Segment { at, labels }, n_previews);
                }
            }
        }
        Ok(check)
    }

    fn add(
        &mut self,
        reader: &Reader<'_>,
        batch: &Batch,
        segment: &Segment<'_>,
        n_previews: usize,
    ) {
        let Segment { at, labels } = segment;
        let n_targets = batch.targets[at.clone()].iter().filter(|t| **t != Batch::IGNORE).count();
        // Padding tokens are segments of their own.
        if at.len() == 1 && n_targets == 0 && labels.is_none() {
            self.padding += 1;
            return;
        }
        let n_targets = n_targets + usize::from(labels.is_some());
        self.examples += 1;
        self.tokens += at.len() as u64;
        self.targets += n_targets as u64;
        self.without_target += u64::from(n_targets == 0);
        let ids = &batch.tokens[at.clone()];
        let is_special = |id: i32| reader.tokenizer.is_special(id as u32);
        let is_end = |id: &&i32| is_special(**id) || reader.ends.contains(&(**id as u32));
        self.begun_twice += u64::from(ids.len() > 1 && ids[0] == ids[1] && is_special(ids[0]));
        // A line break may follow the end of a turn.
        let mut last =
            batch.targets[at.clone()].iter().rev().filter(|t| **t != Batch::IGNORE).take(2);
        self.ended += u64::from(last.any(|id| is_end(&id)));
        if self.previews.len() < n_previews {
            self.previews.push(reader.preview(batch, segment));
        }
    }

    /// Returns a warning for each problem found.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |n: u64, what: &str| {
            if n > 0 {
                warnings.push(format!("{n} of {} examples {what}", self.examples));
            }
        };
        warn(self.begun_twice, "begin with the same special token twice");
        let is_classified = matches!(self.kind, Some(ObjectiveKind::Classify { .. }));
        // The rows of long documents may end anywhere.
        if self.kind == Some(ObjectiveKind::Chat) {
            warn(
                self.examples - self.ended,
                "end without the token that ends a turn: the model does not learn there to stop",
            );
        }
        if !is_classified {
            warn(self.without_target, "have nothing that is learnt");
        }
        warnings
    }

    /// Returns a line about tokens and targets.
    #[must_use]
    pub fn summary(&self) -> String {
        let Self { batches, batches_read, examples, tokens, targets, padding, .. } = self;
        let of = match batches_read < batches {
            true => format!("the first {batches_read} of {batches} batches"),
            // The last batch is filled with the first rows of the next pass.
            false => format!("{batches} batches, about one pass"),
        };
        let what = match self.kind {
            Some(ObjectiveKind::Classify { .. }) => "texts",
            Some(ObjectiveKind::Tag) => "words",
            _ => "tokens",
        };
        let all = (tokens + padding).max(1);
        format!(
            "{of}: {examples} examples of {tokens} tokens, {targets} {what} are learnt; {:.1} % of \
             the rows is empty",
            100.0 * *padding as f64 / all as f64
        )
    }

    /// Returns the same with at most `n` examples.
    #[must_use]
    pub fn with_previews(mut self, n: usize) -> Self {
        self.previews.truncate(n);
        self
    }

    /// Returns an HTML page with the examples and what looks wrong.
    #[must_use]
    pub fn html(&self, title: &str) -> String {
        let mut report = Report::new(title);
        self.add_to(&mut report);
        report.render()
    }

    /// Adds the examples and what looks wrong to a report.
    pub(crate) fn add_to(&self, report: &mut Report) {
        report.section("Data").paragraph(&self.summary());
        for warning in self.warnings() {
            report.paragraph(&format!("Warning: {warning}"));
        }
        let texts: Vec<Vec<Marked>> = self.previews.iter().map(Preview::marked).collect();
        if !texts.is_empty() {
            report.marked("Examples; what is learnt is marked", &texts);
        }
    }

    /// Keeps it in a run directory, for the report.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, dir: &RunDir) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("numbers and text") + "\n";
        Ok(write_file(&dir.path().join(FILE), text.as_bytes())?)
    }

    /// Reads it from a run directory; `None` if the run has none.
    pub(crate) fn read(dir: &RunDir) -> Result<Option<Self>> {
        let path = dir.path().join(FILE);
        match std::fs::read_to_string(&path) {
            // Another version of lehr may have written it, and the run does not depend on it.
            Ok(text) => Ok(serde_json::from_str(&text).ok()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("reading", &path)(e)),
        }
    }
}

impl Preview {
    fn marked(&self) -> Vec<Marked> {
        let mut marked = Vec::with_capacity(self.parts.len() + 1);
        for PreviewPart { text, learnt, tag } in &self.parts {
            let tag = tag.as_ref().map_or(String::new(), |tag| format!("[{tag}]"));
            marked.push(Marked { text: format!("{text}{tag}"), is_marked: *learnt });
        }
        if let Some(label) = &self.label {
            marked.push(Marked { text: " → ".to_owned(), is_marked: false });
            marked.push(Marked { text: label.clone(), is_marked: true });
        }
        marked
    }
}

/// Returns the segments of a row as ranges of the batch.
fn segments(batch: &Batch, row: usize) -> Vec<Range<usize>> {
    let first = row * batch.seq_len;
    let mut segments = Vec::new();
    let mut start = first;
    for starts in batch.segment_starts[first..first + batch.seq_len].chunk_by(|a, b| a == b) {
        segments.push(start..start + starts.len());
        start += starts.len();
    }
    segments
}

/// A segment of a batch, with its labels if it is a sequence that has some.
struct Segment<'a> {
    at: Range<usize>,
    labels: Option<&'a [i32]>,
}

/// Returns the labels of sequences by the places of their first tokens.
fn labels_by_start(batch: &Batch) -> HashMap<usize, &[i32]> {
    let start = |sequence: &Sequence| sequence.row * batch.seq_len + sequence.start;
    batch.sequences.iter().map(|sequence| (start(sequence), sequence.labels.as_slice())).collect()
}

/// Returns the names of the labels of a model's head.
fn labels(config: &Value) -> Vec<String> {
    let names = config.get("id2label").and_then(Value::as_object);
    let name = |id: usize| Some(names?.get(&id.to_string())?.as_str()?.to_owned());
    (0..).map_while(name).collect()
}

/// Returns the ids that end a turn of the model's conversations.
fn ends(task: &Task) -> Result<Vec<u32>> {
    let Some(template) = task.objective.template() else { return Ok(Vec::new()) };
    Ok(template.stop_ids(task.objective.tokenizer())?)
}

/// What turns a segment into text.
struct Reader<'a> {
    kind: ObjectiveKind,
    tokenizer: &'a Tokenizer,
    ends: Vec<u32>,
    labels: Vec<String>,
}

impl Reader<'_> {
    fn preview(&self, batch: &Batch, Segment { at, labels }: &Segment<'_>) -> Preview {
        let (ids, targets) = (&batch.tokens[at.clone()], &batch.targets[at.clone()]);
        let name = |class: i32| self.labels.get(class as usize).cloned().unwrap_or_default();
        // Tokens, whether each is learnt, and its tag.
        let mut tokens: Vec<(i32, bool, Option<String>)> = Vec::with_capacity(ids.len() + 1);
        match self.kind {
            ObjectiveKind::Tag => {
                for (id, target) in ids.iter().zip(targets) {
                    let is_learnt = *target != Batch::IGNORE;
                    let tag = is_learnt.then(|| name(*target)).filter(|tag| tag != "O");
                    tokens.push((*id, is_learnt, tag));
                }
            }
            ObjectiveKind::Classify { .. } => {
                tokens.extend(ids.iter().map(|id| (*id, false, None)));
            }
            ObjectiveKind::NextToken | ObjectiveKind::Chat => {
                // The target of a position is the token after it.
                tokens.push((ids[0], false, None));
                for (t, target) in targets.iter().enumerate() {
                    match (*target, ids.get(t + 1)) {
                        (Batch::IGNORE, Some(next)) => tokens.push((*next, false, None)),
                        (Batch::IGNORE, None) => {}
                        (target, _) => tokens.push((target, true, None)),
                    }
                }
            }
        }
        let label = labels
            .map(|labels| labels.iter().map(|label| name(*label)).collect::<Vec<_>>().join(", "));
        Preview { parts: self.parts(&tokens), label }
    }

    /// Joins neighbours that are alike.
    fn parts(&self, tokens: &[(i32, bool, Option<String>)]) -> Vec<PreviewPart> {
        let alike = |a: &(i32, bool, Option<String>), b: &(i32, bool, Option<String>)| {
            a.1 == b.1 && a.2.is_none() && b.2.is_none()
        };
        let part = |tokens: &[(i32, bool, Option<String>)]| PreviewPart {
            text: self.text(tokens.iter().map(|(id, _, _)| *id as u32)),
            learnt: tokens[0].1,
            tag: tokens[0].2.clone(),
        };
        tokens.chunk_by(alike).map(part).collect()
    }

    /// Returns the text of tokens, with special ones by their names.
    fn text(&self, ids: impl Iterator<Item = u32>) -> String {
        let mut bytes = Vec::new();
        for id in ids {
            match self.tokenizer.is_special(id) {
                true => bytes.extend(self.tokenizer.token(id).unwrap_or_default().bytes()),
                false => bytes.extend(self.tokenizer.token_bytes(id).unwrap_or_default()),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
