//! Text embeddings: vectors whose directions represent the meaning of texts.

use std::path::Path;

use lehr_model::{Model, PackedText, Tokens, Weights};
use lehr_tensor::{Tensor, no_grad};
use lehr_tokenizer::Tokenizer;

use crate::pooling::{Pooling, Settings};
use crate::{Error, Loaded, Result, check_ids};

/// Maximum number of tokens in one forward pass, which bounds the memory of activations.
const BATCH_TOKENS: usize = 4096;
/// Minimum length of a row into which texts are packed.
const ROW_TOKENS: usize = 512;

/// A model that turns texts into vectors.
///
/// Its settings come from the files of sentence-transformers in the model's folder: `modules.json`
/// (pooling), `sentence_bert_config.json` (longest text) and `config_sentence_transformers.json`
/// (prompt before each text). [`Model::warnings`] names their other settings. Without them, an
/// encoder takes the mean of the hidden states, a decoder the hidden state of the last token.
pub struct Embedder {
    model: Model,
    tokenizer: Tokenizer,
    pooling: Pooling,
    prefix: String,
    pools_prefix: bool,
    lower_case: bool,
    max_tokens: usize,
}

/// Vectors of texts.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// f32 `[n, D]` in the order of the texts, each of length 1.
    pub vectors: Tensor,
    /// Indices of the texts whose ends were cut because they exceed the maximum length.
    pub cut: Vec<usize>,
}

impl Embedder {
    /// Opens a run directory, a checkpoint, a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// If there is no model, its parts do not belong together, or its pooling is unknown.
    pub fn open(path: &Path) -> Result<Self> {
        let loaded = Loaded::open(path, Weights::AsStored)?;
        let settings = match loaded.metadata() {
            Some(metadata) => Settings::of_gguf(&loaded.path, metadata)?,
            None => Settings::read(&loaded.path)?,
        };
        let Loaded { mut model, tokenizer, .. } = loaded;
        settings.warnings.iter().for_each(|warning| model.warn(warning));
        let limit = model.spec().max_positions;
        let by_kind = if model.is_causal() { Pooling::Last } else { Pooling::Mean };
        Ok(Self {
            pooling: settings.pooling.unwrap_or(by_kind),
            prefix: settings.prefix,
            pools_prefix: settings.pools_prefix,
            lower_case: settings.lower_case,
            max_tokens: settings.max_tokens.map_or(limit, |max| max.min(limit)),
            model,
            tokenizer,
        })
    }

    /// Replaces the folder's prompt before each text by `prefix`.
    #[must_use]
    pub fn with_prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self }
    }

    /// Replaces the folder's pooling.
    #[must_use]
    pub fn with_pooling(self, pooling: Pooling) -> Self {
        Self { pooling, ..self }
    }

    /// Sets the length at which texts are cut, at most the model's context.
    #[must_use]
    pub fn with_max_tokens(self, max_tokens: usize) -> Self {
        let max_tokens = max_tokens.min(self.model.spec().max_positions);
        Self { max_tokens, ..self }
    }

    /// Returns the dimension of a vector, D.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.model.spec().hidden_size
    }

    /// Returns the pooling.
    #[must_use]
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Returns the length in tokens at which texts are cut, special tokens included.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Returns the model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Computes the vectors of `texts`.
    ///
    /// Texts of similar length are packed into rows, each as its own segment, so little time is
    /// spent on padding. A vector depends on the other texts only through rounding.
    ///
    /// # Errors
    /// If a text cannot be encoded or memory runs out.
    pub fn embed<T: AsRef<str>>(&self, texts: &[T]) -> Result<Embeddings> {
        let (ids, cut) = self.encode(texts)?;
        let (d, n_prompt) = (self.dim(), self.n_unpooled()?);
        let mut vectors = Tensor::zeros([texts.len(), d])?;
        let mut by_length: Vec<usize> = (0..ids.len()).collect();
        by_length.sort_by_key(|&text| std::cmp::Reverse(ids[text].len()));
        let mut rest = &by_length[..];
        while !rest.is_empty() {
            let batch = Packed::fill(&mut rest, &ids, self.model.spec().max_positions);
            let tokens = batch.tokens(&self.model, &ids)?;
            let hidden = no_grad(|| self.model.hidden(&tokens))?.to_host()?;
            for place in &batch.texts {
                let start = (place.row * batch.len() + place.start) * d;
                let states = &hidden.data()[start..start + ids[place.text].len() * d];
                let vector = &mut vectors.data_mut()[place.text * d..(place.text + 1) * d];
                // A text that ends within the prompt is pooled whole.
                let skipped = if states.len() > n_prompt * d { n_prompt * d } else { 0 };
                match self.pooling {
                    Pooling::Mean => pool(self.pooling, &states[skipped..], vector),
                    Pooling::First | Pooling::Last => pool(self.pooling, states, vector),
                }
            }
        }
        Ok(Embeddings { vectors, cut })
    }

    /// Returns the number of tokens at the start of each text that the mean leaves out: those of
    /// the prompt and before it, if the model's files say so (`include_prompt`).
    fn n_unpooled(&self) -> Result<usize> {
        if self.pools_prefix || self.prefix.is_empty() {
            return Ok(0);
        }
        let framed = self.tokenizer.encode_framed(&[&self.whole("")], self.max_tokens)?.remove(0);
        Ok(framed.ids.len().saturating_sub(self.tokenizer.suffix_ids().len()))
    }

    /// Returns what is encoded of a text.
    fn whole(&self, text: &str) -> String {
        let text = format!("{}{text}", self.prefix);
        let text = text.trim();
        if self.lower_case { text.to_lowercase() } else { text.to_owned() }
    }

    /// Encodes each text to at least one token. Returns the indices of the cut texts as well.
    fn encode<T: AsRef<str>>(&self, texts: &[T]) -> Result<(Vec<Vec<u32>>, Vec<usize>)> {
        let texts: Vec<String> = texts.iter().map(|text| self.whole(text.as_ref())).collect();
        let views: Vec<&str> = texts.iter().map(String::as_str).collect();
        let framed = self.tokenizer.encode_framed(&views, self.max_tokens)?;
        let cut = (0..framed.len()).filter(|&text| framed[text].is_cut).collect();
        let mut ids: Vec<Vec<u32>> = framed.into_iter().map(|framed| framed.ids).collect();
        for ids in ids.iter_mut().filter(|ids| ids.is_empty()) {
            // An empty text has no token if the tokenizer adds no special tokens.
            ids.push(self.tokenizer.end_of_document()?);
        }
        for ids in &ids {
            check_ids(ids, &self.tokenizer, &self.model)?;
        }
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
        match longest <= self.max_tokens {
            true => Ok((ids, cut)),
            false => Err(Error::PromptTooLong { found: longest, limit: self.max_tokens }),
        }
    }
}

/// The position of a text in a batch.
struct PackedAt {
    text: usize,
    row: usize,
    start: usize,
}

/// A batch of packed texts.
struct Packed {
    texts: Vec<PackedAt>,
    /// Tokens in each row so far.
    filled: Vec<usize>,
}

impl Packed {
    /// Takes texts from `rest`, longest first, until no row has room for the next.
    fn fill(rest: &mut &[usize], ids: &[Vec<u32>], max_positions: usize) -> Self {
        let room = ids[rest[0]].len().max(ROW_TOKENS.min(max_positions));
        let n_rows = (BATCH_TOKENS / room).max(1);
        let mut packed = Self { texts: Vec::new(), filled: Vec::new() };
        while let [text, others @ ..] = *rest {
            let length = ids[*text].len();
            let row = match packed.filled.iter().position(|filled| filled + length <= room) {
                Some(row) => row,
                None if packed.filled.len() < n_rows => {
                    packed.filled.push(0);
                    packed.filled.len() - 1
                }
                None => break,
            };
            packed.texts.push(PackedAt { text: *text, row, start: packed.filled[row] });
            packed.filled[row] += length;
            *rest = others;
        }
        packed
    }

    /// Returns the length of the rows, T.
    fn len(&self) -> usize {
        self.filled.iter().copied().max().unwrap_or(0)
    }

    /// Builds the rows. Each padding token is its own segment, so no text attends to it.
    fn tokens(&self, model: &Model, ids: &[Vec<u32>]) -> Result<Tokens> {
        let mut texts = Vec::new();
        for place in &self.texts {
            let ids: Vec<i32> = ids[place.text].iter().map(|id| *id as i32).collect();
            let layout = model.layout(&ids)?;
            texts.push((ids, layout));
        }
        let packed = texts.iter().zip(&self.texts).map(|((ids, layout), place)| PackedText {
            ids,
            layout,
            row: place.row,
            start: place.start,
        });
        let packed: Vec<_> = packed.collect();
        Ok(Tokens::pack(&packed, self.filled.len(), self.len())?)
    }
}

/// Pools the states `[T, D]` of a text, T ≥ 1, into one vector of length 1.
fn pool(pooling: Pooling, states: &[f32], vector: &mut [f32]) {
    let d = vector.len();
    let mut sum = vec![0.0f64; d];
    let add = |state: &[f32]| {
        sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
    };
    match pooling {
        // The sum has the direction of the mean, and the vector is normalised below.
        Pooling::Mean => states.chunks_exact(d).for_each(add),
        Pooling::First => states.chunks_exact(d).take(1).for_each(add),
        Pooling::Last => states.chunks_exact(d).next_back().into_iter().for_each(add),
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    // A zero vector has no direction and stays zero.
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.iter_mut().zip(&sum).for_each(|(v, sum)| *v = (sum * scale) as f32);
}
