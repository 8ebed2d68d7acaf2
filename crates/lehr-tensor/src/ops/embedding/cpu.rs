//! Gathering rows and its transpose, adding to rows.

use lehr_kernels::CHUNK;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use crate::ops::rows_per_task;

/// `y[i] = table[ids[i]]` for rows of width `d`; all ids are in range.
pub(crate) fn gather(table: &[f32], ids: &[i32], d: usize, y: &mut [f32]) {
    let rows = rows_per_task(d);
    threads::run_chunks(y, rows * d, |index, y| {
        for (y, id) in y.chunks_exact_mut(d).zip(&ids[index * rows..]) {
            y.copy_from_slice(&table[*id as usize * d..][..d]);
        }
    });
}

/// `table[ids[i]] += dy[i]`, or `=` with 0 in all other rows: tasks own columns, so the rows are
/// added in order.
pub(crate) fn scatter_add(dy: &[f32], ids: &[i32], d: usize, table: &mut [f32], accumulate: bool) {
    /// Columns per task, four cache lines.
    const COLUMNS: usize = 64;
    if !accumulate {
        threads::run_chunks(table, CHUNK, |_, chunk| chunk.fill(0.0));
    }
    let table = SharedMut::new(table);
    threads::run(d.div_ceil(COLUMNS), |task| {
        let start = task * COLUMNS;
        dispatch(AddRows { dy, ids, d, table, start, width: COLUMNS.min(d - start) });
    });
}

struct AddRows<'a> {
    dy: &'a [f32],
    ids: &'a [i32],
    d: usize,
    table: SharedMut<f32>,
    start: usize,
    width: usize,
}

impl Kernel for AddRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (dy, id) in self.dy.chunks_exact(self.d).zip(self.ids) {
            // SAFETY: no other task touches these columns.
            let row = unsafe { self.table.slice(*id as usize * self.d + self.start, self.width) };
            for (sum, dy) in row.iter_mut().zip(&dy[self.start..]) {
                *sum += dy;
            }
        }
    }
}
