//! The exact bytes of every token, for any decoder.
//!
//! The `decoder` section of tokenizer.json is a chain of steps over the list of tokens. This module
//! reads the chain once and applies it to one token at a time, so every id has its own bytes and a
//! stream needs no look-back. Steps that only make sense over a whole text become two facts: what
//! decoding drops at the start of a text, and whether it drops a space at the end.

use serde_json::Value;

use crate::{Error, Result};

/// Map from token strings to bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alphabet {
    steps: Vec<Step>,
    /// Number of spaces that decoding drops at the start of a text.
    pub(crate) leading_spaces: usize,
    /// Whether decoding drops one space at the end of a text.
    pub(crate) trailing_space: bool,
}

/// One step of the decoder, as it acts on a token in the middle of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// One character per byte, GPT-2's table.
    ByteLevel,
    /// `<0xAB>` stands for one byte.
    ByteFallback,
    Replace {
        from: String,
        to: String,
    },
    /// Drops up to this many `content` characters at each end of each token.
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    /// Words without their spaces; `prefix` marks the continuation of a word.
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    /// A space before each token.
    Joined,
}

impl Alphabet {
    /// Reads the `decoder` section of a tokenizer.json. Without one, tokens are joined by spaces.
    pub(crate) fn from_decoder(decoder: &Value) -> Result<Self> {
        let mut alphabet = Self { steps: Vec::new(), leading_spaces: 0, trailing_space: false };
        if decoder.is_null() {
            alphabet.steps.push(Step::Joined);
            alphabet.leading_spaces = 1;
            return Ok(alphabet);
        }
        let mut parts = Vec::new();
        flatten(decoder, &mut parts);
        let mut fused = false;
        for part in parts {
            alphabet.add(part, &mut fused)?;
        }
        Ok(alphabet)
    }

    fn add(&mut self, part: &Value, fused: &mut bool) -> Result<()> {
        let refuse = |found: String| Err(Error::Decoder { found });
        let kind = part["type"].as_str().unwrap_or("without a type");
        let size = |key: &str| usize::try_from(part[key].as_u64().unwrap_or(0)).unwrap_or(0);
        match kind {
            "Fuse" => *fused = true,
            "ByteLevel" => {
                self.steps.push(Step::ByteLevel);
                *fused = true;
            }
            "ByteFallback" => self.steps.push(Step::ByteFallback),
            "Metaspace" => {
                let from = text(part, "replacement", "▁");
                self.steps.push(Step::Replace { from, to: " ".to_owned() });
                let never = part["prepend_scheme"] == "never"
                    || (part["prepend_scheme"].is_null() && part["add_prefix_space"] == false);
                self.leading_spaces = usize::from(!never);
            }
            "Replace" => {
                let Some(from) = part["pattern"]["String"].as_str() else {
                    return refuse("Replace with a regular expression".to_owned());
                };
                // In the fused text a longer pattern could span tokens.
                if *fused && from.chars().count() != 1 {
                    return refuse(format!("Replace of {from:?} after Fuse"));
                }
                let to = text(part, "content", "");
                self.steps.push(Step::Replace { from: from.to_owned(), to });
            }
            "Strip" => {
                let content = text(part, "content", " ").chars().next().unwrap_or(' ');
                let (start, stop) = (size("start"), size("stop"));
                if !*fused {
                    self.steps.push(Step::Strip { content, start, stop });
                } else if content == ' ' && start <= 1 && stop <= 1 {
                    self.leading_spaces = start;
                    self.trailing_space = stop == 1;
                } else {
                    return refuse(format!("Strip of {content:?} by {start} and {stop}"));
                }
            }
            "WordPiece" => {
                let prefix = text(part, "prefix", "##");
                let cleanup = part["cleanup"] == true;
                self.steps.push(Step::WordPiece { prefix, cleanup });
                self.leading_spaces = 1;
            }
            "BPEDecoder" => {
                let from = text(part, "suffix", "</w>");
                self.steps.push(Step::Replace { from, to: " ".to_owned() });
                self.trailing_space = true;
            }
            other => return refuse(other.to_owned()),
        }
        Ok(())
    }

    /// Returns the bytes that `token` stands for in the middle of a text. An `added` token of a
    /// byte-level vocabulary stands for its own text, not for GPT-2's table.
    pub(crate) fn bytes(&self, token: &str, added: bool) -> Vec<u8> {
        let mut text = token.to_owned();
        for step in &self.steps {
            match step {
                Step::ByteLevel if added => return text.into_bytes(),
                Step::ByteLevel => {
                    return byte_level(&text).unwrap_or_else(|| text.into_bytes());
                }
                Step::ByteFallback => {
                    if let Some(byte) = escaped_byte(&text) {
                        return vec![byte];
                    }
                }
                Step::Replace { from, to } => {
                    if !from.is_empty() {
                        text = text.replace(from.as_str(), to);
                    }
                }
                Step::Strip { content, start, stop } => {
                    text = strip(&text, *content, *start, *stop).to_owned();
                }
                Step::WordPiece { prefix, cleanup } => {
                    let piece = match text.strip_prefix(prefix.as_str()) {
                        Some(rest) if !prefix.is_empty() => rest.to_owned(),
                        _ => format!(" {text}"),
                    };
                    text = if *cleanup { clean(&piece) } else { piece };
                }
                Step::Joined => text.insert(0, ' '),
            }
        }
        text.into_bytes()
    }

    /// The character that decodes to a space, such as SentencePiece's `▁`.
    pub(crate) fn space_mark(&self) -> Option<&str> {
        self.steps.iter().find_map(|step| match step {
            Step::Replace { from, to } if to == " " && from.chars().count() == 1 => {
                Some(from.as_str())
            }
            _ => None,
        })
    }

    /// Strips from `bytes` the spaces that decoding drops at the start of a text.
    pub(crate) fn at_start<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let spaces = bytes.iter().take(self.leading_spaces).take_while(|&&b| b == b' ').count();
        &bytes[spaces..]
    }

    /// Strips from `bytes` the space that decoding drops at the end of a text.
    pub(crate) fn at_end<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match bytes {
            [rest @ .., b' '] if self.trailing_space => rest,
            _ => bytes,
        }
    }
}

/// The members of nested `Sequence` decoders, in order.
fn flatten<'a>(decoder: &'a Value, parts: &mut Vec<&'a Value>) {
    match decoder["decoders"].as_array() {
        Some(members) => members.iter().for_each(|member| flatten(member, parts)),
        None => parts.push(decoder),
    }
}

fn text(value: &Value, key: &str, default: &str) -> String {
    value[key].as_str().unwrap_or(default).to_owned()
}

fn strip(text: &str, content: char, start: usize, stop: usize) -> &str {
    let mut text = text;
    for _ in 0..start.min(text.len()) {
        text = text.strip_prefix(content).unwrap_or(text);
    }
    for _ in 0..stop.min(text.len()) {
        text = text.strip_suffix(content).unwrap_or(text);
    }
    text
}

/// Inverts [`byte_level_text`]. Returns `None` if a character is outside the table, as in an added
/// token.
fn byte_level(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of_char).collect()
}

/// Writes `bytes` as GPT-2's byte-level vocabularies do, one character per byte.
pub(crate) fn byte_level_text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char_of_byte(byte)).collect()
}

/// GPT-2's `bytes_to_unicode`, inverted: printable Latin-1 stands for itself, and the 68 other
/// bytes, in rising order, are written as U+0100 and following.
///
/// Source: <https://github.com/openai/gpt-2/blob/master/src/encoder.py>.
fn byte_of_char(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

fn char_of_byte(byte: u8) -> char {
    let code = match u32::from(byte) {
        code @ 0..=0x20 => 0x100 + code,
        code @ 0x7F..=0xA0 => 0x121 + code - 0x7F,
        0xAD => 0x143,
        code => code,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that `<0xAB>` stands for.
pub(crate) fn escaped_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Cleans up English punctuation as Hugging Face's WordPiece decoder does.
fn clean(piece: &str) -> String {
    piece
        .replace(" .", ".")
        .replace(" ?", "?")
        .replace(" !", "!")
        .replace(" ,", ",")
        .replace(" ' ", "'")
        .replace(" n't", "n't")
        .replace(" 'm", "'m")
        .replace(" do not", " don't")
        .replace(" 's", "'s")
        .replace(" 've", "'ve")
        .replace(" 're", "'re")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_byte_table_is_a_bijection_onto_all_bytes() {
        let mut bytes: Vec<u8> =
            (0..0x200).filter_map(char::from_u32).filter_map(byte_of_char).collect();
        bytes.sort_unstable();
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes, all);
        assert_eq!(byte_level(&byte_level_text(&all)), Some(all));
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
    }

    #[test]
    fn sentencepiece_decoders_are_read() {
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let alphabet = Alphabet::from_decoder(&llama).unwrap();
        assert_eq!(alphabet.at_start(b"  the"), b" the");
        assert_eq!(alphabet.bytes("▁the", false), b" the");
        assert_eq!(alphabet.bytes("<0xE4>", false), [0xE4]);
        assert_eq!(alphabet.bytes("<0xE4F>", false), b"<0xE4F>");
        let gemma = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]});
        assert_eq!(Alphabet::from_decoder(&gemma).unwrap().at_start(b" the"), b" the");
        let t5 = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
        let alphabet = Alphabet::from_decoder(&t5).unwrap();
        assert_eq!(alphabet.at_start(b" the"), b"the");
        assert_eq!(alphabet.bytes("<0xE4>", false), b"<0xE4>", "without ByteFallback it is text");
    }

    #[test]
    fn wordpiece_pieces_join_their_word() {
        let bert = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let alphabet = Alphabet::from_decoder(&bert).unwrap();
        assert_eq!(alphabet.bytes("##ing", false), b"ing");
        assert_eq!(alphabet.bytes("go", false), b" go");
        assert_eq!(alphabet.bytes(".", false), b".");
    }

    #[test]
    fn end_of_word_suffixes_and_missing_decoders_are_spaces() {
        let alphabet = Alphabet::from_decoder(&json!({"type": "BPEDecoder"})).unwrap();
        assert_eq!(alphabet.bytes("end</w>", false), b"end ");
        assert_eq!(alphabet.at_end(b"the end "), b"the end");
        let alphabet = Alphabet::from_decoder(&Value::Null).unwrap();
        assert_eq!(alphabet.bytes("word", false), b" word");
        assert_eq!(alphabet.at_start(b" word word"), b"word word");
    }

    #[test]
    fn added_tokens_of_byte_level_vocabularies_are_literal() {
        let alphabet = Alphabet::from_decoder(&json!({"type": "ByteLevel"})).unwrap();
        assert_eq!(alphabet.bytes("Ġé", true), "Ġé".as_bytes());
        assert_eq!(alphabet.bytes("Ġé", false), [b' ', 0xE9]);
    }

    #[test]
    fn strips_of_each_token_and_replacements_keep_their_order() {
        let chain = json!({"type": "Sequence", "decoders": [
            {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "<n>"}, "content": "\n"}]},
            {"type": "Strip", "content": "_", "start": 2, "stop": 1}]});
        let alphabet = Alphabet::from_decoder(&chain).unwrap();
        assert_eq!(alphabet.bytes("___<n>__", false), b"_\n_");
    }

    #[test]
    fn decoders_over_whole_texts_are_named() {
        let late = json!({"type": "Sequence", "decoders": [{"type": "Fuse"},
            {"type": "Replace", "pattern": {"String": "  "}, "content": " "}]});
        let regex = json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"});
        for (decoder, name) in
            [(json!({"type": "CTC"}), "CTC"), (late, "after Fuse"), (regex, "regular expression")]
        {
            let error = Alphabet::from_decoder(&decoder).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
