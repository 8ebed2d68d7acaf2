//! Many rows of activations: panels of weights are packed as bytes and multiplied in integers by
//! register tiles, group by group of 32 numbers (16 where the halves of a group have scales of
//! their own). Only where products of bytes are much faster than those of floats.
//!
//! Sums of floats are kept apart for the first, second, third and fourth groups of all quads, as in
//! [`decode`](super::decode), which works for one row in the same order. A tile has registers for
//! one of the four, so each group has a pass of its own over a few quads at a time.

use std::marker::PhantomData;
use std::ops::Range;

use lehr_kernels::buffer::CpuBuffer;
use lehr_kernels::simd::bytes::{Bytes, BytesKernel, dispatch_bytes};
use lehr_kernels::threads::{self, SharedMut};

use super::activations::{Quad, Rounded};
use super::decode::WeightRows;
use super::stored::Stored;
use crate::quant::QMatrix;
use crate::{DType, Result};

/// Vectors of 16 columns in a panel, and so in a tile.
const NV: usize = 2;
/// Columns of a panel.
const NR: usize = NV * 16;
/// Rows of a tile. 6 × 2 sums of integers, as many of floats, and two vectors of codes fill the 32
/// registers of AVX-512.
const MR: usize = 6;
/// Rows of activations for which a panel is packed once.
const ROWS: usize = 384;
/// Quads that a tile works through for its first, second, third and fourth groups in turn. Their
/// codes stay in the first-level cache for the four passes; the sums of the other groups wait there
/// too.
const BLOCK: usize = 8;
/// Bytes of codes in a panel, for each quad.
const CODES: usize = 128 * NR;

/// `y = x Wᵀ + bias`.
pub(super) fn multiply<W: Stored>(
    format: W,
    w: &QMatrix,
    x: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<()> {
    let (n_out, cols) = (w.rows(), w.cols());
    let x = Rounded::new(x, cols, W::SIGNED)?;
    let n_x = x.quads().len() / x.n_quads;
    let n_chunks = n_x.div_ceil(ROWS);
    let chunk = n_x.div_ceil(n_chunks).next_multiple_of(MR);
    // One panel for each task that can run at a time.
    let size = Panel::<'_, W>::floats(x.n_quads);
    let n_panels = n_out.div_ceil(NR);
    let y = SharedMut::new(y);
    let failed = std::sync::Mutex::new(None);
    threads::run(n_panels * n_chunks, |task| {
        let (panel, rows) = (task % n_panels, task / n_panels * chunk);
        let rows = rows..n_x.min(rows + chunk);
        let mut packed = match CpuBuffer::uninit(DType::F32, size) {
            Ok(packed) => packed,
            Err(error) => {
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                return;
            }
        };
        let packed = packed.as_mut_slice();
        dispatch_bytes(Panel { format, w, first: panel * NR, n_quads: x.n_quads, packed });
        let tiles = Tiles {
            x: x.quads(),
            n_quads: x.n_quads,
            packed,
            rows,
            first: panel * NR,
            n_out,
            bias,
            y,
        };
        dispatch_bytes(Tile::<'_, W> { tiles, format: PhantomData });
    });
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Packs [`NR`] columns of the product, which are rows of the weight.
///
/// For each quad: the codes without sign of its first halves, word by word of 4 along the row, each
/// word for all columns; those of its second halves; then for each group (or half of a group) the
/// scales and offsets of all columns.
struct Panel<'a, W> {
    format: W,
    w: &'a QMatrix,
    first: usize,
    n_quads: usize,
    packed: &'a mut [f32],
}

impl<W: Stored> Panel<'_, W> {
    /// Groups with a scale in a quad.
    const GROUPS: usize = if W::HALVES { 8 } else { 4 };
    /// Floats of a packed quad.
    const QUAD: usize = CODES / 4 + Self::GROUPS * 2 * NR;

    fn floats(n_quads: usize) -> usize {
        n_quads * Self::QUAD
    }
}

impl<W: Stored> BytesKernel for Panel<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Bytes>(self, s: S) {
        let Self { format, w, first, n_quads, packed } = self;
        let groups_last = w.cols().div_ceil(32) - 4 * (n_quads - 1);
        let last = w.rows().min(first + NR);
        let rows = WeightRows::<NR>::new(w, first..last, format.bytes_read(n_quads));
        for (quad, packed) in packed.chunks_exact_mut(Self::QUAD).enumerate() {
            let n = if quad + 1 < n_quads { 4 } else { groups_last };
            let (codes, scales) = packed.split_at_mut(CODES / 4);
            for v in 0..NV {
                let mut halves = [[[0u8; 64]; 16]; 2];
                for lane in 0..16 {
                    let c = v * 16 + lane;
                    // SAFETY: the row has the bytes and scales of all its groups.
                    let terms = unsafe { format.quad(s, rows.codes[c], rows.scales[c], quad, n) };
                    let (mut first, mut second) = (terms.first, terms.second);
                    if W::SIGNED {
                        let flip = s.splat(0x80);
                        (first, second) = (s.xor(first, flip), s.xor(second, flip));
                    }
                    // SAFETY: rows of 64 bytes.
                    unsafe {
                        s.store(halves[0][lane].as_mut_ptr(), first);
                        s.store(halves[1][lane].as_mut_ptr(), second);
                    }
                    let mut put = |group: usize, scale: f32, offset: f32| {
                        scales[group * 2 * NR + c] = scale;
                        scales[group * 2 * NR + NR + c] = offset;
                    };
                    let (scale, offset) = (s.q_array(terms.scale), s.q_array(terms.offset));
                    let step = Self::GROUPS / 4;
                    (0..4).for_each(|b| put(b * step, scale[b], offset[b]));
                    if W::HALVES {
                        let scale = s.q_array(terms.scale_second);
                        let offset = s.q_array(terms.offset_second);
                        (0..4).for_each(|b| put(2 * b + 1, scale[b], offset[b]));
                    }
                }
                for (half, rows) in halves.iter().enumerate() {
                    let dst = &mut codes[(half * 16 * NV + v) * 16..];
                    assert!(dst.len() >= (15 * NV + 1) * 16);
                    // SAFETY: 16 rows of 64 bytes each, `NV` vectors apart at the target.
                    unsafe {
                        s.transpose(rows.as_ptr().cast(), 64, dst.as_mut_ptr().cast(), NV * 64);
                    }
                }
            }
        }
    }
}

/// Some rows of activations times one packed panel.
struct Tiles<'a> {
    x: &'a [Quad],
    n_quads: usize,
    packed: &'a [f32],
    rows: Range<usize>,
    /// The first column.
    first: usize,
    n_out: usize,
    bias: Option<&'a [f32]>,
    y: SharedMut<f32>,
}

/// [`Tiles`] over weights of a format.
struct Tile<'a, W> {
    tiles: Tiles<'a>,
    format: PhantomData<W>,
}

impl<W: Stored> BytesKernel for Tile<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Bytes>(self, s: S) {
        self.tiles.run::<S, W>(s);
    }
}

impl Tiles<'_> {
    #[inline(always)]
    fn run<S: Bytes, W: Stored>(self, s: S) {
        let mut bias = [0.0f32; NR];
        let n = NR.min(self.n_out - self.first);
        if let Some(all) = self.bias {
            bias[..n].copy_from_slice(&all[self.first..][..n]);
        }
        for row in self.rows.clone().step_by(MR) {
            let sums = self.tile::<S, W>(s, row, &bias);
            for (i, sums) in sums.iter().enumerate().take(self.rows.end - row) {
                let mut out = [0.0f32; NR];
                for v in 0..NV {
                    // SAFETY: room for `NV` vectors.
                    unsafe { s.store_f32(out.as_mut_ptr().add(v * 16), sums[v]) };
                }
                // SAFETY: these columns of these rows are this task's alone.
                let y = unsafe { self.y.slice((row + i) * self.n_out + self.first, n) };
                y.copy_from_slice(&out[..n]);
            }
        }
    }

    /// The sums of [`MR`] rows from `row` on; rows beyond the last repeat it.
    #[inline(always)]
    fn tile<S: Bytes, W: Stored>(&self, s: S, row: usize, bias: &[f32; NR]) -> [[S::F; NV]; MR] {
        assert!(S::WIDE && self.packed.len() >= Panel::<'_, W>::floats(self.n_quads));
        assert!(self.x.len() >= self.rows.end * self.n_quads);
        let x: [*const Quad; MR] = std::array::from_fn(|i| {
            self.x[(row + i).min(self.rows.end - 1) * self.n_quads..].as_ptr()
        });
        let mut groups = [[[s.zero(); NV]; MR]; 4];
        for quads in (0..self.n_quads).step_by(BLOCK) {
            let quads = quads..self.n_quads.min(quads + BLOCK);
            for (group, sums) in groups.iter_mut().enumerate() {
                // SAFETY: by the assertions, the panel has all quads, and so has each row.
                *sums = unsafe { self.group::<S, W>(s, &x, group, quads.clone(), *sums) };
            }
        }
        let mut out = [[s.zero(); NV]; MR];
        for v in 0..NV {
            // SAFETY: there are `NV` vectors of biases.
            let bias = unsafe { s.load_f32(bias.as_ptr().add(v * 16)) };
            for i in 0..MR {
                let even = s.add(groups[0][i][v], groups[2][i][v]);
                let odd = s.add(groups[1][i][v], groups[3][i][v]);
                out[i][v] = s.add(s.add(even, odd), bias);
            }
        }
        out
    }

    /// Adds group `group` of some quads to `sums`.
    ///
    /// # Safety
    /// The panel and each row of `x` have these quads.
    #[inline(always)]
    unsafe fn group<S: Bytes, W: Stored>(
        &self,
        s: S,
        x: &[*const Quad; MR],
        group: usize,
        quads: Range<usize>,
        mut sums: [[S::F; NV]; MR],
    ) -> [[S::F; NV]; MR] {
        for quad in quads {
            // SAFETY: promised by the caller.
            unsafe {
                let codes = self.packed.as_ptr().add(quad * Panel::<'_, W>::QUAD);
                let scales = codes.add(CODES / 4);
                let x: [&Quad; MR] = std::array::from_fn(|i| &*x[i].add(quad));
                let x_scale = x.map(|x| x.scale[group]);
                let mut acc = [[s.zero_i(); NV]; MR];
                let first = codes.add(group * 4 * NR);
                let second = first.add(CODES / 8);
                add_words(s, &mut acc, first, &x.map(|x| x.first[16 * group..].as_ptr()));
                if W::HALVES {
                    let scales = scales.add(group * 4 * NR);
                    let sum = x.map(|x| x.sum_first[group]);
                    finish::<S, W>(s, &mut sums, &acc, scales, &x_scale, &sum);
                    acc = [[s.zero_i(); NV]; MR];
                }
                add_words(s, &mut acc, second, &x.map(|x| x.second[16 * group..].as_ptr()));
                let (step, sum) = if W::HALVES {
                    (group * 2 + 1, x.map(|x| x.sum_second[group]))
                } else {
                    (group, x.map(|x| x.sum[group]))
                };
                let scales = scales.add(step * 2 * NR);
                finish::<S, W>(s, &mut sums, &acc, scales, &x_scale, &sum);
            }
        }
        sums
    }
}

/// Adds the products of 16 numbers: four words of each row, four words of all columns.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn add_words<S: Bytes>(
    s: S,
    acc: &mut [[S::I; NV]; MR],
    codes: *const f32,
    x: &[*const i8; MR],
) {
    for word in 0..4 {
        // SAFETY: promised by the caller.
        unsafe {
            let w: [S::B; NV] =
                std::array::from_fn(|v| s.load(codes.add((word * NV + v) * 16).cast()));
            for i in 0..MR {
                let x = s.load_word(x[i].add(4 * word).cast());
                for v in 0..NV {
                    acc[i][v] = s.dot(acc[i][v], w[v], x);
                }
            }
        }
    }
}

/// `sums += acc · scale of column · scale of row + offset of column · sum of row`; for signed
/// codes, which were multiplied plus 128, `sums += (acc + sum of row) · scale of column · scale of
/// row`.
///
/// # Safety
/// Scales and offsets of all columns can be read.
#[inline(always)]
unsafe fn finish<S: Bytes, W: Stored>(
    s: S,
    sums: &mut [[S::F; NV]; MR],
    acc: &[[S::I; NV]; MR],
    scales: *const f32,
    x_scale: &[f32; MR],
    x_sum: &[f32; MR],
) {
    for v in 0..NV {
        // SAFETY: promised by the caller.
        let (scale, offset) =
            unsafe { (s.load_f32(scales.add(v * 16)), s.load_f32(scales.add(NR + v * 16))) };
        for i in 0..MR {
            let with = s.mul(scale, s.splat_f32(x_scale[i]));
            let mut products = s.to_f32(acc[i][v]);
            if W::SIGNED {
                products = s.add(products, s.splat_f32(x_sum[i]));
            }
            sums[i][v] = s.fma(products, with, sums[i][v]);
            if W::OFFSET {
                sums[i][v] = s.fma(offset, s.splat_f32(x_sum[i]), sums[i][v]);
            }
        }
    }
}
