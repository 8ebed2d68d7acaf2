//! Reading the parts of a tensor-parallel checkpoint as whole tensors.
//!
//! Megatron and its descendants save one file per rank of a tensor-parallel group:
//! `mp_rank_00_model_states.pt` and so on. All files have the same names. Each holds its piece of
//! every split tensor and a copy of every other tensor. Only the family knows which tensors are
//! split, and how.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lehr_tensor::{DType, Shape, Tensor};

use super::{Checkpoint, leftover};
use crate::{Error, Result};

/// The way a tensor was split into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardRule {
    /// Replicated: every part has a copy, and the first one is read.
    Replicated,
    /// `[R, C]` or `[R]`: each part has R/n rows, as for column-parallel layers.
    Rows,
    /// As [`ShardRule::Rows`], for each half of the rows: a part has its piece of the first half,
    /// then its piece of the second. Gated layers with one matrix for gate and up need this.
    RowsOfHalves,
    /// `[R, C]`: each part has C/n columns, as for row-parallel layers.
    Columns,
}

impl ShardRule {
    /// Returns the number of contiguous pieces, each split into n parts; `None` if a tensor of this
    /// shape cannot be split so.
    fn n_pieces(self, whole: Shape) -> Option<usize> {
        let rows = whole.first().copied()?;
        match self {
            Self::Replicated => None,
            Self::Rows => Some(1),
            Self::RowsOfHalves => Some(2),
            Self::Columns => (whole.len() == 2).then_some(rows),
        }
    }

    /// Returns the shape of each of `n` parts, if the whole can be split so.
    fn part_shape(self, whole: Shape, n: usize) -> Option<Shape> {
        let mut dims = whole.to_vec();
        let (dim, unit) = match self {
            Self::Replicated => return Some(whole),
            Self::Rows => (0, n),
            Self::RowsOfHalves => (0, 2 * n),
            Self::Columns => (1, n),
        };
        let extent = dims.get_mut(dim).filter(|extent| extent.is_multiple_of(unit))?;
        *extent /= n;
        Some(Shape::from(&dims))
    }
}

/// A checkpoint in n parts, read in place.
pub struct Shards {
    dir: PathBuf,
    parts: Vec<Checkpoint>,
}

impl Shards {
    /// Opens the parts in a folder; `None` if it has none, or has the whole weights as well.
    ///
    /// # Errors
    /// If a part is missing from the sequence or damaged.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let whole = ["model.safetensors", "model.safetensors.index.json"];
        if !dir.is_dir() || whole.iter().any(|name| dir.join(name).is_file()) {
            return Ok(None);
        }
        let mut ranks = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io("listing", dir))? {
            let path = entry.map_err(Error::io("listing", dir))?.path();
            if let Some(rank) = rank(&path) {
                ranks.push((rank, path));
            }
        }
        ranks.sort();
        if ranks.is_empty() {
            return Ok(None);
        }
        if let Some(at) = (0..ranks.len()).find(|at| ranks[*at].0 != *at) {
            return Err(Error::Format {
                path: dir.to_owned(),
                reason: format!(
                    "found {} files mp_rank_…, expected one for each number from 00: look at \
                     {at:02}",
                    ranks.len()
                ),
                hint: Some("copy all parts of one checkpoint into the folder".to_owned()),
            });
        }
        let parts = ranks.iter().map(|(_, path)| Checkpoint::open(path)).collect::<Result<_>>()?;
        Ok(Some(Self { dir: dir.to_owned(), parts }))
    }

    /// Returns the number of parts.
    #[must_use]
    pub fn n_parts(&self) -> usize {
        self.parts.len()
    }

    /// Returns the tensors of the parts that are not among `used`.
    pub(crate) fn unused(&self, used: &BTreeSet<String>) -> Vec<String> {
        let mut unused: BTreeSet<String> = BTreeSet::new();
        for tensor in self.parts.iter().flat_map(Checkpoint::stored) {
            if !used.contains(&tensor.name) && !leftover::is_harmless(&tensor.name, &tensor.shape) {
                unused.insert(tensor.name);
            }
        }
        unused.into_iter().collect()
    }

    /// Assembles a float tensor from its parts, as f32. At most one part is in memory besides the
    /// result.
    ///
    /// # Errors
    /// If a part lacks it, it cannot be split so or a part has another shape.
    pub fn tensor(&self, name: &str, whole: Shape, rule: ShardRule) -> Result<Tensor> {
        let n = self.parts.len();
        let Some(n_pieces) = rule.n_pieces(whole) else {
            return self.parts[0].tensor(name, whole);
        };
        let Some(part_shape) = rule.part_shape(whole, n) else {
            let reason = format!("`{name}` of shape {whole} cannot be in {n} parts ({rule:?})");
            return Err(Error::format(&self.dir, reason));
        };
        let mut out = Tensor::uninit(whole, DType::F32)?;
        // In each piece of the whole, the parts follow one another.
        let piece = whole.n_elements() / n_pieces;
        let run = piece / n;
        for (rank, part) in self.parts.iter().enumerate() {
            let part = part.tensor(name, part_shape)?;
            let pieces = out.data_mut().chunks_exact_mut(piece.max(1));
            for (to, from) in pieces.zip(part.data().chunks_exact(run.max(1))) {
                to[rank * run..(rank + 1) * run].copy_from_slice(from);
            }
        }
        Ok(out)
    }

    /// Adds the folder's path to the engine's message about a parameter.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error {
            Error::Tensor(lehr_tensor::Error::Source { name, shape, reason }) => Error::Format {
                path: self.dir.clone(),
                reason: format!(
                    "loading `{name}` of shape {shape} from {} parts: {reason}",
                    self.parts.len()
                ),
                hint: Some("config.json and all parts must be of one model".to_owned()),
            },
            other => other,
        }
    }
}

/// Returns a part's number from its file name, `mp_rank_03_model_states.pt` or `.safetensors`.
fn rank(path: &Path) -> Option<usize> {
    let name = path.file_name()?.to_str()?.strip_prefix("mp_rank_")?;
    let (number, rest) = name.split_once('_')?;
    matches!(rest, "model_states.pt" | "model_states.safetensors").then(|| number.parse().ok())?
}
