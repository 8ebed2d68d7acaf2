//! Packing: a matrix in f32 is rounded to bf16 and laid out in tiles.
//!
//! A block of 32 rows and 32 columns is read once, and gives the tiles of every wanted form:
//!
//! ```text
//! form                side    of   words (two numbers each)                    how
//! left                Left    M    16 per row: columns 2c and 2c + 1           as it lies
//! right               Right   M    32 per pair of rows: rows 2r and 2r + 1     as it lies
//! left_transposed     Left    Mᵀ   the words of `right`, transposed
//! right_transposed    Right   Mᵀ   the words of `left`, transposed
//! ```

use super::{Panels, Side};
use crate::simd::tile16::{SIDE, STEPS, TILE, WIDE};
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads::{self, SharedMut};

/// Words of a tile: two numbers each.
const WORDS: usize = TILE / 2;
/// Words of a row of a tile.
const ROW: usize = SIDE;

/// The forms wanted of a matrix M `[rows, columns]`.
#[derive(Default)]
pub struct Forms<'a> {
    /// M as the left operand.
    pub left: Option<&'a mut Panels>,
    /// Mᵀ as the left operand.
    pub left_transposed: Option<&'a mut Panels>,
    /// M as the right operand.
    pub right: Option<&'a mut Panels>,
    /// Mᵀ as the right operand.
    pub right_transposed: Option<&'a mut Panels>,
}

/// Rows of a matrix that is packed part by part.
#[derive(Clone, Copy)]
struct Part {
    /// Number of the first row, a multiple of 32.
    first: usize,
    /// Rows of the whole matrix.
    of: usize,
}

/// Rounds the matrix `[rows, columns]`, row-major with rows `stride` apart, to bf16 (to nearest,
/// ties to even) in the wanted forms. Tiles beyond the matrix are filled with 0.
///
/// # Panics
/// If the matrix is shorter, or a form has another side or other extents.
pub fn pack(source: &[f32], stride: usize, (rows, columns): (usize, usize), forms: Forms<'_>) {
    pack_part(source, stride, (rows, columns), Part { first: 0, of: rows }, forms);
}

/// [`pack`] for the rows from `first` of a matrix of `of` rows: the other rows of the forms keep
/// what they hold.
///
/// # Panics
/// As [`pack`], or if `first` is not a multiple of 32, or neither `rows` is nor the end reached.
pub fn pack_rows(
    source: &[f32],
    stride: usize,
    (rows, columns): (usize, usize),
    (first, of): (usize, usize),
    forms: Forms<'_>,
) {
    let is_last = first + rows == of;
    assert!(first.is_multiple_of(STEPS) && (is_last || rows.is_multiple_of(STEPS)));
    assert!(first + rows <= of, "pack: the rows are part of the matrix");
    pack_part(source, stride, (rows, columns), Part { first, of }, forms);
}

fn pack_part(
    source: &[f32],
    stride: usize,
    (rows, columns): (usize, usize),
    part: Part,
    forms: Forms<'_>,
) {
    /// Blocks per task, which reads 128 KiB.
    const PER_TASK: usize = 32;
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * stride + columns <= source.len(), "pack: the matrix is shorter");
    let Forms { left, left_transposed, right, right_transposed } = forms;
    let out = Out {
        left: target(left, Side::Left, part.of, columns),
        left_transposed: target(left_transposed, Side::Left, columns, part.of),
        right: target(right, Side::Right, columns, part.of),
        right_transposed: target(right_transposed, Side::Right, part.of, columns),
        first_row_block: part.first / STEPS,
        n_column_blocks: columns.div_ceil(WIDE),
    };
    let n_blocks = rows.div_ceil(STEPS) * out.n_column_blocks;
    threads::run(n_blocks.div_ceil(PER_TASK), |task| {
        let blocks = task * PER_TASK..n_blocks.min((task + 1) * PER_TASK);
        let factor = 1.0;
        dispatch(Blocks { source, stride, rows, columns, factor, out: &out, blocks });
    });
}

/// The words of panels that must have this side and these extents.
fn target(panels: Option<&mut Panels>, side: Side, width: usize, steps: usize) -> Option<Target> {
    let panels = panels?;
    assert_eq!((panels.side, panels.width, panels.steps), (side, width, steps), "pack: the form");
    let n_panels = panels.n_panels();
    let n_tiles = panels.n_tiles();
    let words = panels.data.bytes_mut();
    // SAFETY: the buffer is aligned to 64 bytes, and any bits are a number.
    let (before, words, after) = unsafe { words.align_to_mut::<u32>() };
    assert!(before.is_empty() && after.is_empty());
    Some(Target { words: SharedMut::new(words), n_tiles, n_panels })
}

/// Panels to be written.
pub(super) struct Target {
    pub(super) words: SharedMut<u32>,
    pub(super) n_tiles: usize,
    pub(super) n_panels: usize,
}

/// The forms to be written.
pub(super) struct Out {
    pub(super) left: Option<Target>,
    pub(super) left_transposed: Option<Target>,
    pub(super) right: Option<Target>,
    pub(super) right_transposed: Option<Target>,
    /// The block of the forms that the first rows go to.
    pub(super) first_row_block: usize,
    pub(super) n_column_blocks: usize,
}

impl Target {
    /// The tile number `tile` of a panel of a left operand; `None` beyond the last panel.
    fn left(&self, panel: usize, tile: usize) -> Option<*mut u32> {
        let at = (panel * self.n_tiles + tile) * WORDS;
        (panel < self.n_panels).then(|| self.words.ptr().wrapping_add(at))
    }

    /// The two tiles number `tile` of a panel of a right operand.
    fn right(&self, panel: usize, tile: usize) -> [*mut u32; 2] {
        let at = (panel * self.n_tiles + tile) * 2 * WORDS;
        [0, 1].map(|half| self.words.ptr().wrapping_add(at + half * WORDS))
    }
}

/// The blocks of 32 × 32 numbers of one task, in the order of the rows.
pub(super) struct Blocks<'a> {
    pub(super) source: &'a [f32],
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// The numbers are multiplied by this first.
    pub(super) factor: f32,
    pub(super) out: &'a Out,
    pub(super) blocks: std::ops::Range<usize>,
}

impl Kernel for Blocks<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.pack(s);
    }
}

impl Blocks<'_> {
    #[inline(always)]
    pub(super) fn pack<S: Simd>(self, s: S) {
        let mut numbers = [[0u32; WIDE]; STEPS];
        for block in self.blocks.clone() {
            let n = self.out.n_column_blocks;
            let (row, column) = (block / n, block % n);
            self.read(row * STEPS, column * WIDE, &mut numbers);
            write(s, &numbers, self.out, self.out.first_row_block + row, column);
        }
    }

    /// Reads a block and rounds it; the upper half of each number is its bf16.
    #[inline(always)]
    fn read(&self, row: usize, column: usize, numbers: &mut [[u32; WIDE]; STEPS]) {
        let columns = WIDE.min(self.columns.saturating_sub(column));
        for (r, numbers) in numbers.iter_mut().enumerate() {
            if row + r >= self.rows || columns == 0 {
                *numbers = [0; WIDE];
                continue;
            }
            let source = &self.source[(row + r) * self.stride + column..][..columns];
            if let Ok(source) = <&[f32; WIDE]>::try_from(source) {
                for (to, from) in numbers.iter_mut().zip(source) {
                    *to = round(*from * self.factor);
                }
                continue;
            }
            *numbers = [0; WIDE];
            for (to, from) in numbers.iter_mut().zip(source) {
                *to = round(*from * self.factor);
            }
        }
    }
}

/// The nearest bf16 in the upper half of the bits, ties to even.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    // Rounding could turn a NaN into infinity; its quiet bit stays instead.
    if x.is_nan() { bits | 0x0040_0000 } else { rounded }
}

/// Two numbers as a word, the first one in the lower half.
#[inline(always)]
fn word(first: u32, second: u32) -> u32 {
    first >> 16 | second & 0xFFFF_0000
}

/// Writes the tiles of a block in all wanted forms.
#[inline(always)]
fn write<S: Simd>(s: S, numbers: &[[u32; WIDE]; STEPS], out: &Out, row: usize, column: usize) {
    if out.left.is_some() || out.right_transposed.is_some() {
        // Two tiles of 16 rows: [tile][row][column / 2].
        let mut words = [0u32; 2 * WORDS];
        for (words, numbers) in words.chunks_exact_mut(ROW).zip(numbers) {
            for (c, word_out) in words.iter_mut().enumerate() {
                *word_out = word(numbers[2 * c], numbers[2 * c + 1]);
            }
        }
        for half in 0..2 {
            let words = &words[half * WORDS..][..WORDS];
            if let Some(tile) = out.left.as_ref().and_then(|t| t.left(2 * row + half, column)) {
                // SAFETY: a whole tile of the panels, which no other task writes.
                unsafe { tile.copy_from_nonoverlapping(words.as_ptr(), WORDS) };
            }
            if let Some(target) = &out.right_transposed {
                // SAFETY: as above.
                unsafe { transpose(s, words, target.right(row, column)[half]) };
            }
        }
    }
    if out.right.is_some() || out.left_transposed.is_some() {
        // Two tiles of 16 columns: [tile][row / 2][column].
        let mut words = [0u32; 2 * WORDS];
        let (first, second) = words.split_at_mut(WORDS);
        for (r, pair) in numbers.chunks_exact(2).enumerate() {
            for c in 0..SIDE {
                first[r * ROW + c] = word(pair[0][c], pair[1][c]);
                second[r * ROW + c] = word(pair[0][SIDE + c], pair[1][SIDE + c]);
            }
        }
        for (half, words) in words.chunks_exact(WORDS).enumerate() {
            if let Some(target) = &out.right {
                let tile = target.right(column, row)[half];
                // SAFETY: as above.
                unsafe { tile.copy_from_nonoverlapping(words.as_ptr(), WORDS) };
            }
            let target = out.left_transposed.as_ref();
            if let Some(tile) = target.and_then(|t| t.left(2 * column + half, row)) {
                // SAFETY: as above.
                unsafe { transpose(s, words, tile) };
            }
        }
    }
}

/// Transposes the 16 × 16 words of a tile.
///
/// # Safety
/// A tile at `to` is writable.
#[inline(always)]
unsafe fn transpose<S: Simd>(s: S, from: &[u32], to: *mut u32) {
    assert!(from.len() == WORDS);
    let (from, to) = (from.as_ptr().cast::<f32>(), to.cast::<f32>());
    for r in (0..SIDE).step_by(S::LANES) {
        for c in (0..SIDE).step_by(S::LANES) {
            // SAFETY: LANES divides 16. Words move as floats and keep their bits.
            unsafe { s.transpose(from.add(r * ROW + c), ROW, to.add(c * ROW + r), ROW) };
        }
    }
}
