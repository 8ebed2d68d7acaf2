//! The exact bytes of every token, whichever of the three common alphabets wrote it.
//!
//! A byte-level vocabulary writes each byte as one printable character (GPT-2's table); a
//! SentencePiece vocabulary writes a space as `▁` and unknown bytes as `<0xAB>`; a WordPiece
//! vocabulary marks the pieces that continue a word. The `decoder` section of tokenizer.json says
//! which one it is.

use serde_json::Value;

use crate::{Error, Result};

/// How token strings map to bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// One character per byte, GPT-2's table.
    ByteLevel,
    /// Spaces written as `space`, bytes as `<0xAB>`.
    SentencePiece { space: String, strip_first_space: bool },
    /// Words without their spaces; `prefix` marks the continuation of a word.
    WordPiece { prefix: String, cleanup: bool },
}

impl Alphabet {
    /// Reads the `decoder` section of a tokenizer.json.
    pub(crate) fn from_decoder(decoder: &Value) -> Result<Self> {
        let parts: Vec<&Value> = match decoder["decoders"].as_array() {
            Some(parts) => parts.iter().collect(),
            None => vec![decoder],
        };
        let find = |kind: &str| parts.iter().find(|part| part["type"] == kind).copied();
        if find("ByteLevel").is_some() {
            return Ok(Self::ByteLevel);
        }
        if let Some(part) = find("Metaspace") {
            return Ok(Self::SentencePiece {
                space: text(part, "replacement", "▁"),
                strip_first_space: part["prepend_scheme"] != "never",
            });
        }
        if let Some(part) = find("Replace") {
            let strips = find("Strip").is_some_and(|strip| strip["start"].as_u64() >= Some(1));
            return Ok(Self::SentencePiece {
                space: text(&part["pattern"], "String", "▁"),
                strip_first_space: strips,
            });
        }
        if let Some(part) = find("WordPiece") {
            return Ok(Self::WordPiece {
                prefix: text(part, "prefix", "##"),
                cleanup: part["cleanup"] == true,
            });
        }
        let kinds: Vec<&str> = parts.iter().filter_map(|part| part["type"].as_str()).collect();
        let found = if kinds.is_empty() { "missing".to_owned() } else { kinds.join(", ") };
        Err(Error::Decoder { found })
    }

    /// Whether decoding drops one space at the very start of a text.
    pub(crate) fn strips_first_space(&self) -> bool {
        match self {
            Self::ByteLevel => false,
            Self::SentencePiece { strip_first_space, .. } => *strip_first_space,
            Self::WordPiece { .. } => true,
        }
    }

    /// The bytes that `token` stands for in the middle of a text.
    pub(crate) fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => byte_level(token).unwrap_or_else(|| token.as_bytes().to_vec()),
            Self::SentencePiece { space, .. } => match escaped_byte(token) {
                Some(byte) => vec![byte],
                None => token.replace(space.as_str(), " ").into_bytes(),
            },
            Self::WordPiece { prefix, cleanup } => {
                let piece = match token.strip_prefix(prefix.as_str()) {
                    Some(rest) => rest.to_owned(),
                    None => format!(" {token}"),
                };
                if *cleanup { clean(&piece).into_bytes() } else { piece.into_bytes() }
            }
        }
    }
}

fn text(value: &Value, key: &str, default: &str) -> String {
    value[key].as_str().unwrap_or(default).to_owned()
}

/// Inverse of GPT-2's table; none if a character is outside it, as in an added token.
fn byte_level(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of_char).collect()
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

fn escaped_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The clean-up of English punctuation that Hugging Face's WordPiece decoder applies.
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
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
    }

    #[test]
    fn sentencepiece_decoders_are_recognised() {
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let alphabet = Alphabet::from_decoder(&llama).unwrap();
        assert!(alphabet.strips_first_space());
        assert_eq!(alphabet.bytes("▁the"), b" the");
        assert_eq!(alphabet.bytes("<0xE4>"), [0xE4]);
        assert_eq!(alphabet.bytes("<0xE4F>"), b"<0xE4F>");
    }

    #[test]
    fn wordpiece_pieces_join_their_word() {
        let bert = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let alphabet = Alphabet::from_decoder(&bert).unwrap();
        assert_eq!(alphabet.bytes("##ing"), b"ing");
        assert_eq!(alphabet.bytes("go"), b" go");
        assert_eq!(alphabet.bytes("."), b".");
    }

    #[test]
    fn an_unknown_decoder_is_named() {
        let error = Alphabet::from_decoder(&json!({"type": "CTC"})).unwrap_err();
        assert!(error.to_string().contains("decoder is CTC"), "{error}");
        let error = Alphabet::from_decoder(&Value::Null).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
