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
        let mut room = [[0.0; WIDE]; STEPS];
        for block in self.blocks.clone() {
            let n = self.out.n_column_blocks;
            let (row, column) = (block / n, block % n);
            let numbers = self.numbers(row * STEPS, column * WIDE, &mut room);
            write(s, &numbers, self.out, self.out.first_row_block + row, column);
        }
    }

    /// Returns a block where it lies, or a copy in `room` with zeros beyond the matrix.
    #[inline(always)]
    fn numbers(&self, row: usize, column: usize, room: &mut [[f32; WIDE]; STEPS]) -> Numbers {
        let rows = STEPS.min(self.rows.saturating_sub(row));
        let columns = WIDE.min(self.columns.saturating_sub(column));
        if rows == STEPS && columns == WIDE {
            let all = &self.source[row * self.stride + column..];
            assert!(all.len() >= (STEPS - 1) * self.stride + WIDE, "pack: the matrix is shorter");
            return Numbers { at: all.as_ptr(), stride: self.stride, factor: self.factor };
        }
        *room = [[0.0; WIDE]; STEPS];
        for (r, to) in room.iter_mut().enumerate().take(rows) {
            if columns > 0 {
                let from = &self.source[(row + r) * self.stride + column..][..columns];
                to[..columns].copy_from_slice(from);
            }
        }
        Numbers { at: room.as_ptr().cast(), stride: WIDE, factor: self.factor }
    }
}

/// A block of 32 × 32 numbers, which can be read.
struct Numbers {
    at: *const f32,
    stride: usize,
    factor: f32,
}

impl Numbers {
    #[inline(always)]
    fn row(&self, row: usize) -> *const f32 {
        self.at.wrapping_add(row * self.stride)
    }
}

/// Writes the tiles of a block in all wanted forms.
#[inline(always)]
fn write<S: Simd>(s: S, numbers: &Numbers, out: &Out, row: usize, column: usize) {
    let mut room = Tile([0; WORDS]);
    let room = room.0.as_mut_ptr();
    if out.left.is_some() || out.right_transposed.is_some() {
        // Two tiles of 16 rows: [row][column / 2].
        for half in 0..2 {
            let tile = out.left.as_ref().and_then(|left| left.left(2 * row + half, column));
            let words = tile.unwrap_or(room);
            for r in 0..SIDE {
                let from = numbers.row(half * SIDE + r);
                // SAFETY: rows of 32 numbers and of 16 words; no other task writes the tile.
                unsafe { s.round_row(from, numbers.factor, words.add(r * ROW)) };
            }
            if let Some(target) = &out.right_transposed {
                // SAFETY: as above.
                unsafe { transpose(s, words, target.right(row, column)[half]) };
            }
        }
    }
    if out.right.is_some() || out.left_transposed.is_some() {
        // Two tiles of 16 columns: [row / 2][column].
        for half in 0..2 {
            let words = out.right.as_ref().map_or(room, |right| right.right(column, row)[half]);
            for r in 0..SIDE {
                let first = numbers.row(2 * r).wrapping_add(half * SIDE);
                let rows = [first, first.wrapping_add(numbers.stride)];
                // SAFETY: as above, with rows of 16 numbers.
                unsafe { s.round_rows(rows, numbers.factor, words.add(r * ROW)) };
            }
            let target = out.left_transposed.as_ref();
            if let Some(tile) = target.and_then(|t| t.left(2 * column + half, row)) {
                // SAFETY: as above.
                unsafe { transpose(s, words, tile) };
            }
        }
    }
}

/// The words of a tile, which fill whole cache lines.
#[repr(align(64))]
struct Tile([u32; WORDS]);

/// Transposes the 16 × 16 words of a tile.
///
/// # Safety
/// A tile at `from` is readable, and one at `to` writable.
#[inline(always)]
unsafe fn transpose<S: Simd>(s: S, from: *const u32, to: *mut u32) {
    let (from, to) = (from.cast::<f32>(), to.cast::<f32>());
    for r in (0..SIDE).step_by(S::LANES) {
        for c in (0..SIDE).step_by(S::LANES) {
            // SAFETY: LANES divides 16. Words move as floats and keep their bits.
            unsafe { s.transpose(from.add(r * ROW + c), ROW, to.add(c * ROW + r), ROW) };
        }
    }
}
