//! The header of a shard.

use sha2::{Digest, Sha256};

pub(crate) const HEADER_BYTES: usize = 128;
const MAGIC: &[u8; 8] = b"lehrtok\0";
/// Since version 2 a document begins with the prefix of its tokenizer.
const VERSION: u32 = 2;
/// Number of header bytes that the header's own checksum covers.
const CHECKED: usize = 112;

/// Header before the tokens of a shard.
///
/// | offset | field                                              |
/// |-------:|----------------------------------------------------|
/// |      0 | magic `lehrtok\0`                                  |
/// |      8 | version, u32                                       |
/// |     12 | bytes of an id: 2 or 4, u32                        |
/// |     16 | tokens, u64                                        |
/// |     24 | documents, u64                                     |
/// |     32 | UTF-8 bytes of the documents, u64                  |
/// |     40 | vocabulary size, u32                               |
/// |     44 | id of the end-of-document token, u32               |
/// |     48 | SHA-256 of the tokenizer                           |
/// |     80 | SHA-256 of everything after the header             |
/// |    112 | first 16 bytes of the SHA-256 of the bytes before  |
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id_bytes: u32,
    pub(crate) tokens: u64,
    pub(crate) documents: u64,
    pub(crate) text_bytes: u64,
    pub(crate) vocab_size: u32,
    pub(crate) end_of_document: u32,
    pub(crate) tokenizer: [u8; 32],
    pub(crate) payload: [u8; 32],
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.id_bytes.to_le_bytes());
        for count in [self.tokens, self.documents, self.text_bytes] {
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        bytes.extend_from_slice(&self.vocab_size.to_le_bytes());
        bytes.extend_from_slice(&self.end_of_document.to_le_bytes());
        bytes.extend_from_slice(&self.tokenizer);
        bytes.extend_from_slice(&self.payload);
        let check = Sha256::digest(&bytes);
        bytes.extend_from_slice(&check[..HEADER_BYTES - CHECKED]);
        bytes.try_into().expect("the fields of a header fill it exactly")
    }

    /// Reads the header from the first bytes of a file of `found` bytes, or returns what is wrong
    /// with it.
    pub(crate) fn decode(file: &[u8], found: u64) -> Result<Self, String> {
        if file.len() < HEADER_BYTES {
            return Err(format!("{found} bytes, expected at least {HEADER_BYTES}: it is cut"));
        }
        if &file[..8] != MAGIC {
            return Err("it does not begin as a token shard".to_owned());
        }
        let version = u32_at(file, 8);
        if version != VERSION {
            return Err(format!("format version {version}, expected {VERSION}"));
        }
        if Sha256::digest(&file[..CHECKED])[..HEADER_BYTES - CHECKED] != file[CHECKED..HEADER_BYTES]
        {
            return Err("the header is damaged: its checksum does not match".to_owned());
        }
        let header = Self {
            id_bytes: u32_at(file, 12),
            tokens: u64_at(file, 16),
            documents: u64_at(file, 24),
            text_bytes: u64_at(file, 32),
            vocab_size: u32_at(file, 40),
            end_of_document: u32_at(file, 44),
            tokenizer: hash_at(file, 48),
            payload: hash_at(file, 80),
        };
        match header.file_bytes() {
            Some(expected) if expected == found => Ok(header),
            Some(expected) => Err(format!("{found} bytes, expected {expected}: it is cut")),
            None => Err("the header claims an impossible size".to_owned()),
        }
    }

    /// Returns the offset of the document index, or `None` if the sizes are impossible.
    pub(crate) fn index_offset(&self) -> Option<u64> {
        if self.id_bytes != 2 && self.id_bytes != 4 {
            return None;
        }
        let tokens = self.tokens.checked_mul(u64::from(self.id_bytes))?;
        tokens.checked_next_multiple_of(8)?.checked_add(HEADER_BYTES as u64)
    }

    fn file_bytes(&self) -> Option<u64> {
        let index = self.documents.checked_add(1)?.checked_mul(8)?;
        self.index_offset()?.checked_add(index)
    }
}

/// Parses a hash in hexadecimal; `None` if the text is not one.
pub(crate) fn hash_bytes(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    (0..8).fold(0, |value, i| value | u64::from(bytes[at + i]) << (8 * i))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    (0..4).fold(0, |value, i| value | u32::from(bytes[at + i]) << (8 * i))
}

fn hash_at(bytes: &[u8], at: usize) -> [u8; 32] {
    std::array::from_fn(|i| bytes[at + i])
}
