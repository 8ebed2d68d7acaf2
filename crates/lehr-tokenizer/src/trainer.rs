//! Training of a byte-level BPE vocabulary.

use std::sync::atomic::{AtomicBool, Ordering};

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    SplitDelimiterBehavior, Tokenizer as HfTokenizer, Trainer as _,
};

use crate::pieces::pieces;
use crate::{Error, Result, SpecialIds, Tokenizer};

/// Bytes of a text that are cut into words at a time. The library keeps more than a hundred bytes
/// per byte of text until they are counted.
const PIECE_BYTES: usize = 64 << 10;

/// Bytes of a word beyond which it is counted in parts of this length. The library's time for a
/// merge grows with the square of a word's length, so 500 KB of letters without a space took
/// minutes. No word of a language with spaces is as long.
const WORD_BYTES_MAX: usize = 256;

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
    /// Words of more than 256 bytes, such as DNA or base64, are counted in parts of 256 bytes, so
    /// that the time grows with the size of the texts and not with that of their words.
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
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(self.vocab_size)
            .min_frequency(self.min_frequency)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(special)
            .build();
        let seen = AtomicBool::new(false);
        let texts = texts.into_iter().inspect(|text| {
            if !text.as_ref().is_empty() {
                seen.store(true, Ordering::Relaxed);
            }
        });
        let fail = |error: tokenizers::Error| Error::Train(error.to_string());
        trainer.feed(texts, |text| words_of(&pre_tokenizer, text)).map_err(fail)?;
        if !seen.into_inner() {
            return Err(Error::EmptyCorpus);
        }
        let mut model = BPE::default();
        let special = trainer.train(&mut model).map_err(fail)?;
        let mut tokenizer = HfTokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
        tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
        tokenizer.add_special_tokens(special).map_err(fail)?;
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

/// Returns the words of a text in the byte alphabet, long ones in parts.
fn words_of(
    pre_tokenizer: &PreTokenizerWrapper,
    text: &str,
) -> std::result::Result<Vec<String>, tokenizers::Error> {
    let mut words = Vec::new();
    for piece in pieces(text, PIECE_BYTES) {
        let mut split = PreTokenizedString::from(piece);
        pre_tokenizer.pre_tokenize(&mut split)?;
        for (word, ..) in split.get_splits(OffsetReferential::Original, OffsetType::None) {
            push_parts(word, &mut words);
        }
    }
    Ok(words)
}

/// Appends `word`, in which a character stands for a byte, in parts of [`WORD_BYTES_MAX`].
fn push_parts(word: &str, words: &mut Vec<String>) {
    let mut rest = word;
    // A character of the byte alphabet has one or two bytes.
    while rest.len() > WORD_BYTES_MAX
        && let Some((at, _)) = rest.char_indices().nth(WORD_BYTES_MAX)
    {
        let (part, after) = rest.split_at(at);
        words.push(part.to_owned());
        rest = after;
    }
    words.push(rest.to_owned());
}
