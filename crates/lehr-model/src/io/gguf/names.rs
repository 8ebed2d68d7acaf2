//! Tensor names in GGUF files and in lehr's families, and the changes that conversion to GGUF makes
//! to values.
//!
//! The names on the GGUF side are those of llama.cpp (`gguf-py/gguf/constants.py` there).

use crate::io::change::Change;

/// The tensors of a family. Names come without their suffix `.weight` or `.bias`.
pub(super) struct Layout {
    /// Tensors outside the blocks.
    pub(super) outer: &'static [Rule],
    /// Prefix of a block number in the family's names; in GGUF files it is `blk.`.
    pub(super) block_prefix: &'static str,
    /// Tensors of a block, relative to its number.
    pub(super) block: &'static [Rule],
}

/// One tensor under both names.
pub(super) struct Rule {
    pub(super) ggml: &'static str,
    pub(super) ours: &'static str,
    pub(super) kind: Kind,
}

/// The change of a tensor on the way into a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// None.
    Same,
    /// The rows of each query head change from half-split to interleaved pairs.
    QueryRows,
    /// The rows of each key head change likewise.
    KeyRows,
    /// Matrices are transposed.
    Transposed,
    /// 1 is added.
    PlusOne,
}

/// Creates a rule without change.
pub(super) const fn same(ggml: &'static str, ours: &'static str) -> Rule {
    Rule { ggml, ours, kind: Kind::Same }
}

/// Creates a rule with a change.
pub(super) const fn rule(ggml: &'static str, ours: &'static str, kind: Kind) -> Rule {
    Rule { ggml, ours, kind }
}

/// Numbers of heads, for the rules that need them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) key: usize,
}

impl Kind {
    /// Returns the change to undo when such a tensor of `n_dims` dimensions is read.
    pub(super) fn change(self, heads: Heads, n_dims: usize) -> Change {
        match self {
            Self::QueryRows => Change::InterleavedRows { heads: heads.query },
            Self::KeyRows => Change::InterleavedRows { heads: heads.key },
            Self::Transposed if n_dims == 2 => Change::Transposed,
            Self::Same | Self::Transposed => Change::None,
            Self::PlusOne => Change::PlusOne,
        }
    }
}

impl Layout {
    /// Returns the family's name of the file's tensor `ggml`; `None` if it has no such tensor.
    pub(super) fn to_ours(&self, ggml: &str) -> Option<(String, Kind)> {
        let (path, last) = ggml.rsplit_once('.')?;
        let Some((number, stem)) = path.strip_prefix("blk.").and_then(|p| p.split_once('.')) else {
            let rule = self.outer.iter().find(|rule| rule.ggml == path)?;
            return Some((format!("{}.{last}", rule.ours), rule.kind));
        };
        let number: usize = number.parse().ok()?;
        let rule = self.block.iter().find(|rule| rule.ggml == stem)?;
        Some((format!("{}{number}.{}.{last}", self.block_prefix, rule.ours), rule.kind))
    }

    /// Returns the file's name of the family's tensor `ours`.
    pub(super) fn to_ggml(&self, ours: &str) -> Option<(String, Kind)> {
        let (path, last) = ours.rsplit_once('.')?;
        let in_block = path.strip_prefix(self.block_prefix).and_then(|p| p.split_once('.'));
        let Some((number, stem)) = in_block else {
            let rule = self.outer.iter().find(|rule| rule.ours == path)?;
            return Some((format!("{}.{last}", rule.ggml), rule.kind));
        };
        let number: usize = number.parse().ok()?;
        let rule = self.block.iter().find(|rule| rule.ours == stem)?;
        Some((format!("blk.{number}.{}.{last}", rule.ggml), rule.kind))
    }
}
