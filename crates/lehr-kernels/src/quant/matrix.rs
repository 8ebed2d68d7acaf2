//! A weight matrix in a storage format, possibly in a memory-mapped file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::WeightFormat;
use super::scaled::{Code, NF4_GROUP};
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads::{self, SharedMut};
use crate::{Error, Result};

/// Storage format of a [`StoredMatrix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixFormat {
    /// A format of GGUF files: rows of whole blocks, scales inside.
    Gguf(WeightFormat),
    /// Signed bytes and separate scales.
    Int8(Scaling),
    /// Signed nibbles, the even column of two in the upper half of a byte, and separate scales.
    Int4(Scaling),
    /// 16 quantiles of the normal distribution, two to a byte as in INT4, a scale for each 64
    /// numbers of a row (QLoRA).
    Nf4,
}

/// The numbers of a matrix that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scaling {
    /// All of a row: one scale per output, as GLM-130B and ChatGLM store their weights.
    Row,
    /// This many neighbours in a row: a power of two, at least 32.
    Group(usize),
}

impl Scaling {
    /// The default: groups of 64. Their error is 8 % below that of groups of 128, for half a bit
    /// more per number.
    pub const DEFAULT: Self = Self::Group(64);
}

impl MatrixFormat {
    /// Whether its numbers are floats without scales.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::Gguf(WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16))
    }

    /// Returns this format, or the nearest whose blocks or groups fill rows of `width` numbers:
    /// with smaller groups, one scale per row, or another format.
    #[must_use]
    pub fn fallback_for(self, width: usize) -> Self {
        const SMALLEST: usize = 32;
        let group = |group: usize| match () {
            () if width.is_multiple_of(group) => Scaling::Group(group),
            () if width.is_multiple_of(SMALLEST) => Scaling::Group(SMALLEST),
            () => Scaling::Row,
        };
        match self {
            Self::Gguf(format) => Self::Gguf(format.fallback_for(width)),
            Self::Int8(Scaling::Group(n)) => Self::Int8(group(n)),
            Self::Int4(Scaling::Group(n)) => Self::Int4(group(n)),
            Self::Nf4 if !width.is_multiple_of(64) => {
                Self::Gguf(WeightFormat::Q4_0.fallback_for(width))
            }
            whole => whole,
        }
    }
}

impl From<WeightFormat> for MatrixFormat {
    fn from(format: WeightFormat) -> Self {
        Self::Gguf(format)
    }
}

impl fmt::Display for MatrixFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf(format) => write!(f, "{format}"),
            Self::Int8(Scaling::Row) => f.write_str("INT8"),
            Self::Int4(Scaling::Row) => f.write_str("INT4"),
            Self::Int8(Scaling::Group(n)) => write!(f, "INT8/{n}"),
            Self::Int4(Scaling::Group(n)) => write!(f, "INT4/{n}"),
            Self::Nf4 => f.write_str("NF4"),
        }
    }
}

/// Grouping of the codes of lehr's own formats.
pub struct Grouping {
    /// The meaning of a code.
    pub code: Code,
    /// Numbers that share a scale.
    pub group: usize,
}

impl MatrixFormat {
    /// Columns of a matrix are a multiple of this.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::Gguf(format) => format.block_len(),
            Self::Int8(Scaling::Row) => 1,
            Self::Int4(Scaling::Row) => 2,
            Self::Int8(Scaling::Group(n)) | Self::Int4(Scaling::Group(n)) => n,
            Self::Nf4 => NF4_GROUP,
        }
    }

    /// Bytes of the codes of a row, without separate scales.
    #[must_use]
    pub const fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::Gguf(format) => format.n_bytes(cols),
            Self::Int8(_) => Code::Int8.n_bytes(cols),
            Self::Int4(_) | Self::Nf4 => Code::Int4.n_bytes(cols),
        }
    }

    /// Number of separate scales per row.
    #[must_use]
    pub const fn row_scales(self, cols: usize) -> usize {
        match self {
            Self::Gguf(_) => 0,
            Self::Int8(Scaling::Row) | Self::Int4(Scaling::Row) => 1,
            Self::Int8(Scaling::Group(n)) | Self::Int4(Scaling::Group(n)) => cols / n,
            Self::Nf4 => cols / NF4_GROUP,
        }
    }

    /// Returns how the codes of rows of `cols` numbers are grouped; `None` for formats of GGUF.
    pub fn grouping(self, cols: usize) -> Option<Grouping> {
        let (code, scaling) = match self {
            Self::Gguf(_) => return None,
            Self::Int8(scaling) => (Code::Int8, scaling),
            Self::Int4(scaling) => (Code::Int4, scaling),
            Self::Nf4 => (Code::Nf4, Scaling::Group(NF4_GROUP)),
        };
        let group = match scaling {
            Scaling::Row => cols,
            Scaling::Group(n) => n,
        };
        Some(Grouping { code, group })
    }

    fn check(self, rows: usize, cols: usize) -> Result<()> {
        if let Self::Int8(Scaling::Group(n)) | Self::Int4(Scaling::Group(n)) = self
            && (n < 32 || !n.is_power_of_two())
        {
            return Err(argument("group", n, "a power of two from 32 on"));
        }
        if !cols.is_multiple_of(self.block_len()) {
            let expected = match self {
                Self::Gguf(_) => "whole blocks of the format (32 or 256 numbers)",
                Self::Int4(Scaling::Row) => "an even number",
                _ => "whole groups of the format",
            };
            return Err(argument("number of columns", format!("{cols} for {self}"), expected));
        }
        let fits = rows.checked_mul(cols).is_some_and(|n| isize::try_from(n).is_ok());
        if fits {
            Ok(())
        } else {
            Err(argument("number of rows", rows, "a matrix that fits memory"))
        }
    }
}

fn argument(name: &'static str, value: impl fmt::Display, expected: &'static str) -> Error {
    Error::Argument { op: "QMatrix", name, value: format!("{value}"), expected }
}

/// Owner of the memory of the codes: a file mapping, a vector, or part of a tensor.
pub type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Format of the activations in products with a [`StoredMatrix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Rounded to 8 bits with a scale for each 32 numbers: integer products, at an error of about
    /// 0.6 % of the root mean square of a result. Used for generation.
    Int8,
    /// Unchanged, in f32: only the stored weights have an error. Used for training.
    F32,
}

/// A weight matrix `[rows, cols]` (outputs × inputs) in a stored form.
///
/// Clones share the bytes. Kernels read them in place: nothing is copied or changed between a
/// mapped file and a kernel.
#[derive(Clone)]
pub struct StoredMatrix {
    rows: usize,
    cols: usize,
    format: MatrixFormat,
    activations: Activations,
    owner: Owner,
    range: Range<usize>,
    scales: Arc<[f32]>,
}

impl StoredMatrix {
    /// Creates a matrix whose codes are the bytes `range` of `owner`, row by row. `scales` are
    /// `[rows, row_scales]` for formats with separate scales, else empty.
    ///
    /// # Errors
    /// If the columns are not whole blocks, or the bytes or scales are more or fewer than the
    /// format takes.
    pub fn new(
        format: impl Into<MatrixFormat>,
        rows: usize,
        cols: usize,
        owner: Owner,
        range: Range<usize>,
        scales: Vec<f32>,
    ) -> Result<Self> {
        let format = format.into();
        format.check(rows, cols)?;
        let n_bytes = rows.checked_mul(format.row_bytes(cols));
        let given = (*owner).as_ref().get(range.clone()).map(<[u8]>::len);
        if given.is_none() || given != n_bytes {
            let value = format!("{range:?} of {} for {rows} x {cols} in {format}", {
                (*owner).as_ref().len()
            });
            return Err(argument(
                "range of bytes",
                value,
                "the bytes of all rows, within the owner",
            ));
        }
        if scales.len() != rows * format.row_scales(cols) {
            let value = format!("{} for {rows} x {cols} in {format}", scales.len());
            return Err(argument("number of scales", value, "one for each row or group"));
        }
        let activations = Activations::Int8;
        let scales = scales.into();
        Ok(Self { rows, cols, format, activations, owner, range, scales })
    }

    /// Stores `values`, `[rows, cols]` row-major, in parallel. They must be finite: another number
    /// would spoil its block.
    ///
    /// # Errors
    /// If the columns are not whole blocks or the number of values is not `rows · cols`.
    pub fn from_f32(
        values: &[f32],
        rows: usize,
        cols: usize,
        format: impl Into<MatrixFormat>,
    ) -> Result<Self> {
        let format = format.into();
        format.check(rows, cols)?;
        if values.len() != rows * cols {
            let value = format!("{} for {rows} x {cols}", values.len());
            return Err(argument("number of values", value, "rows times columns"));
        }
        let mut bytes = vec![0; rows * format.row_bytes(cols)];
        let mut scales = vec![0.0; rows * format.row_scales(cols)];
        match (format, format.grouping(cols)) {
            (MatrixFormat::Gguf(format), _) => format.quantize(values, &mut bytes),
            (_, Some(Grouping { code, group })) if group > 0 => {
                let per_task = ((1usize << 14) / group).max(1);
                let bytes = SharedMut::new(&mut bytes);
                threads::run_chunks(&mut scales, per_task, |task, scales| {
                    let (start, n) = (task * per_task * group, scales.len() * group);
                    // SAFETY: tasks own different groups.
                    let bytes = unsafe { bytes.slice(code.n_bytes(start), code.n_bytes(n)) };
                    dispatch(EncodeGroups {
                        code,
                        group,
                        x: &values[start..start + n],
                        bytes,
                        scales,
                    });
                });
            }
            _ => (),
        }
        let n = bytes.len();
        Self::new(format, rows, cols, Arc::new(bytes), 0..n, scales)
    }

    /// Returns the matrix with another format of activations in its products.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// Returns the format of activations in products; initially [`Activations::Int8`].
    #[must_use]
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Number of rows: outputs of the linear map, or entries of the table.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: inputs of the linear map.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the storage format.
    #[must_use]
    pub fn format(&self) -> MatrixFormat {
        self.format
    }

    /// Bytes from one row of codes to the next.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    /// Returns the codes of all rows.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }

    /// Returns the separate scales, `[rows, row_scales]`; empty for GGUF formats.
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Size in memory or file: codes and scales.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.range.len() + size_of_val::<[f32]>(&self.scales)
    }

    /// Writes the numbers of some rows to `out`, `[rows, cols]` row-major, in parallel.
    ///
    /// # Panics
    /// If rows are out of range or `out` has another length than they take.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert_eq!(out.len(), rows.len() * self.cols, "the numbers of rows {rows:?}");
        let row_bytes = self.row_bytes();
        let bytes = &self.bytes()[rows.start * row_bytes..rows.end * row_bytes];
        match (self.format, self.format.grouping(self.cols)) {
            (MatrixFormat::Gguf(format), _) => format.dequantize(bytes, out),
            (_, Some(Grouping { code, group })) if group > 0 => {
                let row_scales = self.format.row_scales(self.cols);
                let scales = &self.scales[rows.start * row_scales..rows.end * row_scales];
                let per_task = ((1usize << 14) / group).max(1);
                threads::run_chunks(out, per_task * group, |task, out| {
                    let first = task * per_task;
                    let bytes = &bytes[code.n_bytes(first * group)..][..code.n_bytes(out.len())];
                    dispatch(DecodeGroups { code, group, bytes, scales: &scales[first..], out });
                });
            }
            _ => (),
        }
    }
}

impl fmt::Debug for StoredMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredMatrix({} [{}, {}])", self.format, self.rows, self.cols)
    }
}

struct EncodeGroups<'a> {
    code: Code,
    group: usize,
    x: &'a [f32],
    bytes: &'a mut [u8],
    scales: &'a mut [f32],
}

impl Kernel for EncodeGroups<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let bytes = self.bytes.chunks_exact_mut(self.code.n_bytes(self.group));
        for ((x, bytes), scale) in self.x.chunks_exact(self.group).zip(bytes).zip(self.scales) {
            *scale = self.code.encode(x, bytes);
        }
    }
}

struct DecodeGroups<'a> {
    code: Code,
    group: usize,
    bytes: &'a [u8],
    scales: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for DecodeGroups<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let bytes = self.bytes.chunks_exact(self.code.n_bytes(self.group));
        for ((out, bytes), scale) in
            self.out.chunks_exact_mut(self.group).zip(bytes).zip(self.scales)
        {
            self.code.decode(bytes, *scale, out);
        }
    }
}
