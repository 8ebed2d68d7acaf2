//! Small products within one task: operands that lie in the task's own memory, without threads.

use super::pack::{Blocks, Out, Target};
use crate::simd::Simd;
use crate::simd::tile16::{Block, SIDE, STEPS, TILE, WIDE, Worker};
use crate::threads::SharedMut;

/// Words of a form of a matrix of `rows` and `columns`, both multiples of 32.
#[must_use]
pub const fn local_words(rows: usize, columns: usize) -> usize {
    rows * columns / 2
}

/// The forms wanted of a small matrix: [`Forms`](super::Forms) in memory of the task, of
/// [`local_words`] each. Lines of 64 bytes should not be split.
#[derive(Default)]
pub struct LocalForms<'a> {
    /// M as the left operand.
    pub left: Option<&'a mut [u32]>,
    /// Mᵀ as the left operand.
    pub left_transposed: Option<&'a mut [u32]>,
    /// M as the right operand.
    pub right: Option<&'a mut [u32]>,
    /// Mᵀ as the right operand.
    pub right_transposed: Option<&'a mut [u32]>,
}

/// Rounds `factor · M` for the matrix M `[rows, columns]`, row-major with rows `stride` apart, in
/// the wanted forms of a matrix of `room` rows and columns: the rest is 0.
///
/// # Panics
/// If the matrix is shorter, the room smaller or no multiple of 32, or a form of another length.
#[inline(always)]
pub fn pack_local<S: Simd>(
    s: S,
    source: &[f32],
    stride: usize,
    (rows, columns): (usize, usize),
    room: (usize, usize),
    factor: f32,
    forms: LocalForms<'_>,
) {
    assert!(room.0.is_multiple_of(STEPS) && room.1.is_multiple_of(WIDE));
    assert!(rows <= room.0 && columns <= room.1);
    assert!(rows == 0 || columns == 0 || (rows - 1) * stride + columns <= source.len());
    let target = |words: Option<&mut [u32]>, panels: usize, tiles: usize| {
        let words = words?;
        assert_eq!(words.len(), local_words(room.0, room.1), "pack_local: the form");
        Some(Target { words: SharedMut::new(words), n_tiles: tiles, n_panels: panels })
    };
    let LocalForms { left, left_transposed, right, right_transposed } = forms;
    let out = Out {
        left: target(left, room.0 / SIDE, room.1 / STEPS),
        left_transposed: target(left_transposed, room.1 / SIDE, room.0 / STEPS),
        right: target(right, room.1 / WIDE, room.0 / STEPS),
        right_transposed: target(right_transposed, room.0 / WIDE, room.1 / STEPS),
        first_row_block: 0,
        n_column_blocks: room.1 / WIDE,
    };
    let blocks = 0..room.0 / STEPS * out.n_column_blocks;
    Blocks { source, stride, rows, columns, factor, out: &out, blocks }.pack(s);
}

/// `C = A B`, or `C += A B` if `accumulate`, for forms of A `[m, k]` and B `[k, n]`, all multiples
/// of 32, and C row-major with rows `c_stride` apart.
///
/// # Panics
/// If an operand or C is shorter.
#[inline]
pub fn product_local(
    worker: &Worker,
    (m, n, k): (usize, usize, usize),
    a: &[u32],
    b: &[u32],
    c: &mut [f32],
    c_stride: usize,
    accumulate: bool,
) {
    static ZEROS: [f32; WIDE] = [0.0; WIDE];
    assert!(m.is_multiple_of(WIDE) && n.is_multiple_of(WIDE) && k.is_multiple_of(STEPS));
    assert!(m > 0 && k > 0 && a.len() >= m * k / 2 && b.len() >= k * n / 2);
    assert!(c_stride >= n && c.len() >= (m - 1) * c_stride + n);
    let tiles = k / STEPS;
    let (a, b): (*const u16, *const u16) = (a.as_ptr().cast(), b.as_ptr().cast());
    for i in (0..m).step_by(WIDE) {
        let a0 = a.wrapping_add(i / SIDE * tiles * TILE);
        let a1 = Some(a0.wrapping_add(tiles * TILE));
        for j in (0..n).step_by(WIDE) {
            let to = c[i * c_stride + j..].as_mut_ptr();
            let (from, from_stride) =
                if accumulate { (to.cast_const(), c_stride) } else { (ZEROS.as_ptr(), 0) };
            let b = b.wrapping_add(j / WIDE * tiles * 2 * TILE);
            let block = Block { a0, a1, b, n: tiles, from, from_stride, to, to_stride: c_stride };
            // SAFETY: the operands hold whole tiles and C the block, by the assertions.
            unsafe { worker.multiply(&block) };
        }
    }
}
