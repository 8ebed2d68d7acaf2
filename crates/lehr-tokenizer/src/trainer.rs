//! Training of a byte-level BPE vocabulary.

use std::sync::atomic::{AtomicBool, Ordering};

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    SplitDelimiterBehavior, Tokenizer as HfTokenizer,
};

use crate::{Error, Result, SpecialIds, Tokenizer};

/// Default special tokens of a vocabulary trained here, ids 0 to 4.
pub const DEFAULT_SPECIAL_TOKENS: [&str; 5] =
    ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];

/// GPT-4's split of text into words (`cl100k_base`).
///
/// Source: <https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py>, with plain
/// instead of possessive quantifiers, which match the same here.
const GPT4: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Rule that cuts text into words before BPE. A token never crosses a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pattern {
    /// GPT-2: letters, digit runs and punctuation, each with one leading space.
    Gpt2,
    /// GPT-4: like GPT-2, with digits in groups of three, separate line breaks and any case of
    /// `'s`.
    #[default]
    Gpt4,
}

/// Trains a byte-level BPE tokenizer. The vocabulary has all 256 bytes, so any text encodes and
/// decodes byte for byte.
///
/// Ids: special tokens in the given order, then the bytes, then merges by descending frequency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trainer {
    /// Requested number of ids, including special tokens. A small corpus may give fewer.
    pub vocab_size: usize,
    /// How text is cut into words.
    pub pattern: Pattern,
    /// Names of the special tokens; each needs punctuation inside, as in `<|name|>`.
    pub special_tokens: Vec<String>,
    /// A pair of tokens is merged only if it occurs at least this often.
    pub min_frequency: u64,
}

impl Trainer {
    /// A trainer with GPT-4's pattern, the [`DEFAULT_SPECIAL_TOKENS`] and `min_frequency` 2.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            vocab_size,
            pattern: Pattern::default(),
            special_tokens: DEFAULT_SPECIAL_TOKENS.map(str::to_owned).to_vec(),
            min_frequency: 2,
        }
    }

    /// Trains on `texts`. The same texts give the same tokenizer, whatever the number of threads.
    ///
    /// Sennrich, Haddow and Birch 2016, <https://arxiv.org/abs/1508.07909>.
    ///
    /// # Errors
    /// The corpus is empty, the vocabulary is too small for the bytes and the special tokens, or a
    /// special token is empty, repeated, or could be trained as an ordinary word.
    pub fn train<S>(&self, texts: impl IntoIterator<Item = S, IntoIter: Send>) -> Result<Tokenizer>
    where
        S: AsRef<str> + Send,
    {
        let pre_tokenizer = self.pattern.pre_tokenizer()?;
        self.check(&pre_tokenizer)?;
        let special: Vec<AddedToken> =
            self.special_tokens.iter().map(|name| AddedToken::from(name.as_str(), true)).collect();
        let trainer = BpeTrainerBuilder::new()
            .vocab_size(self.vocab_size)
            .min_frequency(self.min_frequency)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(special)
            .build();
        let mut tokenizer = HfTokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
        tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
        let seen = AtomicBool::new(false);
        let texts = texts.into_iter().inspect(|text| {
            if !text.as_ref().is_empty() {
                seen.store(true, Ordering::Relaxed);
            }
        });
        tokenizer
            .train(&mut TrainerWrapper::BpeTrainer(trainer), texts)
            .map_err(|error| Error::Train(error.to_string()))?;
        if !seen.into_inner() {
            return Err(Error::EmptyCorpus);
        }
        Tokenizer::from_hf(tokenizer, SpecialIds::default())
    }

    fn check(&self, pre_tokenizer: &PreTokenizerWrapper) -> Result<()> {
        let special = self.special_tokens.len();
        let minimum = 256 + special;
        if self.vocab_size < minimum {
            return Err(Error::VocabularyTooSmall {
                vocab_size: self.vocab_size,
                minimum,
                special,
            });
        }
        for (index, token) in self.special_tokens.iter().enumerate() {
            let refuse = |reason| Err(Error::SpecialToken { token: token.clone(), reason });
            if token.is_empty() {
                return refuse("is empty");
            }
            if self.special_tokens[..index].contains(token) {
                return refuse("is given twice");
            }
            // Merges could produce a name that is one word, and ordinary text would then become the
            // special token.
            if words(pre_tokenizer, token)? < 2 {
                return refuse("is an ordinary word, which text could be encoded to");
            }
        }
        Ok(())
    }
}

impl Pattern {
    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper> {
        match self {
            Self::Gpt2 => Ok(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true))),
            Self::Gpt4 => {
                let pattern = SplitPattern::Regex(GPT4.to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                    .map_err(|error| Error::Train(error.to_string()))?;
                Ok(PreTokenizerWrapper::Sequence(Sequence::new(vec![
                    PreTokenizerWrapper::Split(split),
                    PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)),
                ])))
            }
        }
    }
}

fn words(pre_tokenizer: &PreTokenizerWrapper, text: &str) -> Result<usize> {
    let mut split = PreTokenizedString::from(text);
    pre_tokenizer.pre_tokenize(&mut split).map_err(|error| Error::Train(error.to_string()))?;
    Ok(split.get_splits(OffsetReferential::Original, OffsetType::Byte).len())
}
