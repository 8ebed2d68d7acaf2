//! Names of tensors in GGUF files against the names of our families, and what conversion to GGUF
//! did to the numbers.
//!
//! The names on the GGUF side are those of llama.cpp (`gguf-py/gguf/constants.py` there).

use crate::io::change::Change;

/// The tensors of a family. Names come without their last part, `.weight` or `.bias`.
pub(super) struct Layout {
    /// Tensors there are once.
    pub(super) outer: &'static [Rule],
    /// Before the number of a block in our names; in GGUF files it is `blk.`.
    pub(super) block_prefix: &'static str,
    /// Tensors of a block, below its number.
    pub(super) block: &'static [Rule],
}

/// One tensor under both names.
pub(super) struct Rule {
    pub(super) ggml: &'static str,
    pub(super) ours: &'static str,
    pub(super) kind: Kind,
}

/// What happens to a tensor on the way into a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Same,
    /// The rows of each query head go from half-split to interleaved pairs.
    QueryRows,
    /// The same for key heads.
    KeyRows,
    /// Matrices are transposed.
    Transposed,
    /// 1 is added.
    PlusOne,
}

/// A rule without change.
pub(super) const fn same(ggml: &'static str, ours: &'static str) -> Rule {
    Rule { ggml, ours, kind: Kind::Same }
}

/// A rule with a change.
pub(super) const fn rule(ggml: &'static str, ours: &'static str, kind: Kind) -> Rule {
    Rule { ggml, ours, kind }
}

/// Heads of a model, for the rules that need them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) key: usize,
}

impl Kind {
    /// What must be undone when such a tensor of `n_dims` dimensions is read.
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
    /// Our name of the tensor that is `ggml` in files; `None` if the family has none such.
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

    /// The name in files of the tensor that is `ours` in the family.
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
