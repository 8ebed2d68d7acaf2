//! A model that tags words, with its tokenizer.

use std::path::Path;

use anyhow::Result;
use lehr_data::entities::{Entity, SpanMode, TagSet, WordRow, WordToken, Words, word_rows};
use lehr_infer::{check_vocabulary, resolve_model, tokenizer_of};
use lehr_model::{Tagger, Tokens};
use lehr_tensor::{Tensor, no_grad};
use lehr_tokenizer::Tokenizer;

use crate::cmd::compute::DeviceArgs;
use crate::cmd::pass::{PASS_TOKENS, TextPass};
use crate::fail::Hinted;

/// A tag of a word and its probability; `None` for a word without a token.
type TagOf = Option<(usize, f32)>;

/// The words of a text as found by the model.
pub(crate) struct Found {
    /// Words without a token, and words whose tokens do not fit into the context.
    pub(crate) n_untagged: usize,
    pub(crate) n_cut: usize,
    /// The entities, and the mean probability of the tags of each.
    pub(crate) entities: Vec<(Entity, f32)>,
    /// The class of each word; that of `O` for a word without a token.
    pub(crate) classes: Vec<usize>,
}

impl Found {
    /// Warns of words that are `O` because they could not be read.
    pub(crate) fn warn(n_untagged: usize, n_cut: usize) {
        for (n, what) in [
            (n_untagged, "have no token of the model's tokenizer and are tagged O"),
            (n_cut, "are cut at the context of the model"),
        ] {
            if n > 0 {
                eprintln!("warning: {n} words {what}");
            }
        }
    }
}

/// A model that finds named entities.
pub(crate) struct EntityModel {
    tagger: Tagger,
    tags: TagSet,
    tokenizer: Tokenizer,
}

impl EntityModel {
    /// Opens a run, or a folder of such a model, on a device.
    pub(crate) fn open(path: &Path, device: &DeviceArgs) -> Result<Self> {
        let dir = resolve_model(path)?;
        let mut tagger = Tagger::load(&dir)?;
        let tokenizer = tokenizer_of(&dir)?;
        if let Some(warning) = check_vocabulary(&dir, &tokenizer, tagger.model())? {
            tagger.model_mut().warn(warning);
        }
        let tags = TagSet::from_names(tagger.labels().iter().cloned())?;
        device.place(tagger.model())?;
        Ok(Self { tagger, tags, tokenizer })
    }

    /// Returns the tags.
    pub(crate) fn tags(&self) -> &TagSet {
        &self.tags
    }

    /// Finds the entities of texts.
    pub(crate) fn find(&self, texts: &[Words<'_>]) -> Result<Vec<Found>> {
        // What is known of the texts must not help to find it.
        let texts: Vec<Words<'_>> = texts.iter().map(|t| Words { entities: &[], ..*t }).collect();
        let token = match self.tagger.tags_last_token() {
            true => WordToken::Last,
            false => WordToken::First,
        };
        let context = self.tagger.model().spec().max_positions;
        let rows = word_rows(&self.tokenizer, &texts, token, context.min(PASS_TOKENS))?;
        let mut tags: Vec<Vec<TagOf>> = texts.iter().map(|t| vec![None; t.words.len()]).collect();
        let cut = |rows: &Vec<WordRow>| rows.iter().map(|row| row.n_cut).sum();
        let n_cut: Vec<usize> = rows.iter().map(cut).collect();
        let rows: Vec<(usize, &WordRow)> = rows
            .iter()
            .enumerate()
            .flat_map(|(i, rows)| rows.iter().map(move |r| (i, r)))
            .collect();
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let (group, after) = rest.split_at(self.tag(rest, &mut tags)?);
            debug_assert!(!group.is_empty(), "a pass computes at least one row");
            rest = after;
        }
        Ok(tags.iter().zip(n_cut).map(|(tags, n_cut)| self.found(tags, n_cut)).collect())
    }

    /// Tags the words of the first rows in one pass. Returns their number.
    fn tag(&self, rows: &[(usize, &WordRow)], tags: &mut [Vec<TagOf>]) -> Result<usize> {
        let ids: Vec<&[u32]> = rows.iter().map(|(_, row)| row.ids.as_slice()).collect();
        let pass = TextPass::of(self.tagger.model(), &self.tokenizer, &ids)?;
        let (mut places, mut words) = (Vec::new(), Vec::new());
        for ((text, row), start) in rows.iter().zip(&pass.starts) {
            places.extend(row.places.iter().map(|(_, place)| (start + place) as i32));
            words.extend(row.places.iter().map(|(word, _)| (*text, *word)));
        }
        if !places.is_empty() {
            let probabilities = self.probabilities(&pass.tokens, &places)?;
            let n_tags = self.tags.labels().names().len();
            for ((text, word), row) in words.into_iter().zip(probabilities.chunks(n_tags)) {
                let best = (0..n_tags).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
                tags[text][word] = Some((best, row[best]));
            }
        }
        Ok(pass.starts.len())
    }

    /// Computes the probabilities of all tags at `places`.
    fn probabilities(&self, tokens: &Tokens, places: &[i32]) -> Result<Vec<f32>> {
        let places = Tensor::from_ids(places, [places.len()])?;
        let probabilities = no_grad(|| -> Result<Vec<f32>> {
            Ok(self.tagger.logits(tokens, &places)?.softmax()?.to_host()?.to_vec())
        })?;
        match probabilities.iter().all(|p| p.is_finite()) {
            true => Ok(probabilities),
            false => Err(Hinted::error(
                "tagging words: some probabilities are not numbers",
                "the weights are damaged, or the computation overflows: try --dtype f32",
            )),
        }
    }

    fn found(&self, tags: &[TagOf], n_cut: usize) -> Found {
        let outside = self.tags.labels().class("O").unwrap_or(0);
        let classes: Vec<usize> = tags.iter().map(|t| t.map_or(outside, |(c, _)| c)).collect();
        let entities = self.tags.entities(&classes, SpanMode::Lenient);
        let mean = |entity: &Entity| {
            let sum: f32 = tags[entity.words.clone()].iter().flatten().map(|(_, p)| p).sum();
            sum / entity.words.len() as f32
        };
        let entities = entities.into_iter().map(|e| (mean(&e), e)).map(|(p, e)| (e, p)).collect();
        let n_untagged = tags.iter().filter(|tag| tag.is_none()).count();
        Found { entities, classes, n_untagged, n_cut }
    }
}
