//! Settings of one architecture, read from a file.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use crate::io::gguf::metadata::Metadata;
use crate::io::gguf::names::Heads;
use crate::io::gguf::reader::Header;
use crate::{Error, Result};

/// The tensor with the divisors of rotary frequencies.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The metadata of a file below the name of its architecture.
pub(in crate::io::gguf) struct Settings<'a> {
    pub(in crate::io::gguf) header: &'a Header,
    pub(in crate::io::gguf) arch: &'a str,
    /// The divisors of rotary frequencies, if the file has them.
    pub(super) rope_factors: Option<Vec<f32>>,
    /// The keys that were asked for.
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Settings<'a> {
    /// Reads the settings of the whole `files`.
    pub(in crate::io::gguf) fn new(header: &'a Header, files: &[(&Path, &[u8])]) -> Result<Self> {
        let arch = header.metadata.string("general.architecture")?;
        let missing = || Error::config("general.architecture", "missing", "a name");
        let factors = header.tensors.iter().find(|t| t.name == ROPE_FACTORS).map(|t| {
            let floats = t.floats(files[t.part].1);
            floats.ok_or_else(|| Error::config(ROPE_FACTORS, format!("{:?}", t.dtype), "floats"))
        });
        let (arch, rope_factors) = (arch.ok_or_else(missing)?, factors.transpose()?);
        Ok(Self { header, arch, rope_factors, asked: RefCell::default() })
    }

    /// Returns whether a key of the architecture was asked for.
    pub(in crate::io::gguf) fn was_asked(&self, key: &str) -> bool {
        self.asked.borrow().contains(key)
    }

    fn metadata(&self) -> &'a Metadata {
        &self.header.metadata
    }

    pub(in crate::io::gguf) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// Returns the name of a key that is about to be read.
    fn ask(&self, name: &str) -> String {
        let key = self.key(name);
        self.asked.borrow_mut().insert(key.clone());
        key
    }

    /// Returns an integer that the file may have.
    pub(super) fn integer(&self, name: &str) -> Result<Option<u64>> {
        self.metadata().integer(&self.ask(name))
    }

    /// Returns an integer that the file must have.
    pub(super) fn need_integer(&self, name: &str) -> Result<u64> {
        let value = self.integer(name)?;
        value.ok_or_else(|| Error::config(&self.key(name), "missing", "an integer"))
    }

    /// Returns a float that the file may have.
    pub(super) fn float(&self, name: &str) -> Result<Option<f64>> {
        self.metadata().float(&self.ask(name))
    }

    /// Returns a float that the file must have.
    pub(super) fn need_float(&self, name: &str) -> Result<f64> {
        let value = self.float(name)?;
        value.ok_or_else(|| Error::config(&self.key(name), "missing", "a float"))
    }

    /// Returns a text that the file may have.
    pub(super) fn string(&self, name: &str) -> Result<Option<&'a str>> {
        self.metadata().string(&self.ask(name))
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.header.tensors.iter().any(|t| t.name == name)
    }

    /// Returns the number of rows of a matrix.
    pub(super) fn n_rows(&self, name: &str) -> Result<usize> {
        let tensor = self.header.tensors.iter().find(|t| t.name == name);
        match tensor.map(|t| t.shape.as_slice()) {
            // Leading extents of 1 are omitted.
            Some([_]) => Ok(1),
            Some([rows, _]) => Ok(*rows),
            Some(other) => Err(Error::config(name, format!("{other:?}"), "a matrix")),
            None => Err(Error::config(name, "missing", "a matrix")),
        }
    }

    /// Returns the number of rows of the embedding. Models may have more rows than their tokenizer
    /// has tokens.
    pub(super) fn vocab_size(&self) -> Result<usize> {
        self.n_rows("token_embd.weight")
    }

    /// Checks that the model is not a mixture of experts.
    pub(super) fn refuse_experts(&self) -> Result<()> {
        match self.integer("expert_count")? {
            None | Some(0) => Ok(()),
            Some(n) => Err(Error::config(&self.key("expert_count"), n, "0: a dense model")),
        }
    }

    /// Returns the numbers of query and key heads.
    pub(in crate::io::gguf) fn heads(&self) -> Result<Heads> {
        let query = self.need_integer("attention.head_count")?;
        let key = self.integer("attention.head_count_kv")?.unwrap_or(query);
        let size = |key: &str, value: u64| match usize::try_from(value) {
            Ok(value) if value > 0 => Ok(value),
            _ => Err(Error::config(&self.key(key), value, "at least 1")),
        };
        Ok(Heads {
            query: size("attention.head_count", query)?,
            key: size("attention.head_count_kv", key)?,
        })
    }

    /// Returns the width of a head.
    pub(super) fn head_dim(&self) -> Result<u64> {
        let width = self.need_integer("embedding_length")?;
        let heads = self.heads()?.query as u64;
        let head_dim = self.integer("attention.key_length")?.unwrap_or(width / heads);
        match self.integer("attention.value_length")? {
            Some(value) if value != head_dim => {
                let expected = format!("the width of keys, {head_dim}");
                Err(Error::config(&self.key("attention.value_length"), value, expected))
            }
            _ => Ok(head_dim),
        }
    }
}
