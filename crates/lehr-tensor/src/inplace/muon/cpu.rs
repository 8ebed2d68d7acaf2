//! The update on the CPU. Small matrices are updated side by side, a thread each; large ones one
//! after another, by all threads. The bits are the same.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use lehr_kernels::buffer::CpuBuffer;
use lehr_kernels::threads::{self, SharedMut};

use super::part::Part;
use super::polar::{Work, orthogonalize};
use super::{Muon, MuonItem, rounded};
use crate::{DType, Error, Result};

mod passes;

use passes::{Factors, Squares};

/// Elements of the largest matrix that one thread updates alone.
const ALONE_MAX: usize = 1 << 20;

/// Added to norms before they divide, or their least value: that of published implementations.
const EPS: f64 = 1e-6;
/// Least second moment.
const MOMENT_MIN: f64 = 1e-10;
/// Singular values are divided by this more than by the norm.
const MARGIN: f64 = 1.01;

/// Updates all items that have a gradient.
pub(super) fn update(items: &mut [MuonItem<'_>], rule: Muon) -> Result<()> {
    let mut jobs: Vec<_> = items
        .iter_mut()
        .filter(|item| item.param.grad().is_some())
        .map(|item| (Part::all(item.param), item))
        .collect();
    // The largest first: the last ones then end at about the same time.
    jobs.sort_by_key(|(parts, _)| std::cmp::Reverse(parts.iter().map(cost).sum::<usize>()));
    let n_large =
        jobs.iter().filter(|(parts, _)| parts.iter().any(|p| p.len() > ALONE_MAX)).count();
    let (large, small) = jobs.split_at_mut(n_large);
    one_by_one(large, rule)?;
    if small.len() < threads::n_threads() || threads::n_threads() == 1 {
        return one_by_one(small, rule);
    }
    side_by_side(small, rule)
}

type Job<'a, 'b> = (Vec<Part>, &'b mut MuonItem<'a>);

/// Multiply-adds of an orthogonalisation, as far as they order matrices.
fn cost(part: &Part) -> usize {
    part.len() * part.side()
}

fn one_by_one(jobs: &mut [Job<'_, '_>], rule: Muon) -> Result<()> {
    let mut scratch = Scratch::new(jobs, rule)?;
    jobs.iter_mut().try_for_each(|job| update_one(job, rule, &mut scratch))
}

fn side_by_side(jobs: &mut [Job<'_, '_>], rule: Muon) -> Result<()> {
    let (n, next) = (jobs.len(), AtomicUsize::new(0));
    let mut scratch: Vec<_> =
        (0..threads::n_threads()).map(|_| Scratch::new(jobs, rule)).collect::<Result<_>>()?;
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let (jobs, slots) = (SharedMut::new(jobs), SharedMut::new(&mut scratch));
    threads::run(threads::n_threads(), |slot| {
        // SAFETY: each task has a slot of its own.
        let scratch = unsafe { &mut slots.slice(slot, 1)[0] };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= n {
                return;
            }
            // SAFETY: each index is drawn once.
            let job = unsafe { &mut jobs.slice(index, 1)[0] };
            if let Err(error) = update_one(job, rule, scratch) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Memory for the largest part of some jobs.
struct Scratch {
    x: CpuBuffer,
    y: CpuBuffer,
    gram: CpuBuffer,
    polynomial: CpuBuffer,
}

impl Scratch {
    fn new(jobs: &[Job<'_, '_>], rule: Muon) -> Result<Self> {
        let parts = || jobs.iter().flat_map(|(parts, _)| parts).filter(|_| rule.moves);
        let len = parts().map(Part::len).max().unwrap_or(0);
        let square = parts().map(|part| part.side() * part.side()).max().unwrap_or(0);
        let buffer = |len| CpuBuffer::uninit(DType::F32, len);
        let (x, y) = (buffer(len)?, buffer(len)?);
        Ok(Self { x, y, gram: buffer(square)?, polynomial: buffer(square)? })
    }

    fn work(&mut self, part: &Part) -> Work<'_> {
        let square = part.side() * part.side();
        Work {
            x: &mut self.x.as_mut_slice()[..part.len()],
            y: &mut self.y.as_mut_slice()[..part.len()],
            gram: &mut self.gram.as_mut_slice()[..square],
            polynomial: &mut self.polynomial.as_mut_slice()[..square],
        }
    }
}

fn update_one((parts, item): &mut Job<'_, '_>, rule: Muon, scratch: &mut Scratch) -> Result<()> {
    let (momentum, second) = (item.momentum.data_mut(), item.second.data_mut());
    let in_bf16 = item.param.compute_dtype() == DType::BF16;
    item.param.update(|value, grad| {
        let Some(grad) = grad else { return Ok(()) };
        if !rule.moves {
            passes::take_in(momentum, grad, &rule);
            return Ok(());
        }
        for part in parts {
            let moments = &mut second[part.moments_at..][..part.n_moments()];
            let mut work = scratch.work(part);
            passes::gather(part, momentum, grad, &rule, work.x);
            let factors = equalize(part, work.x);
            passes::scale(part, work.x, &factors);
            match in_bf16 {
                true => rounded::orthogonalize(part.rows, part.cols, &mut work)?,
                false => orthogonalize(part.rows, part.cols, &mut work)?,
            }
            let factors = normalize(part, work.x, moments, rule.beta2);
            let lr = rule.lr * part.lr_scale();
            passes::apply(part, value, work.x, &factors, Muon { lr, ..rule });
        }
        Ok(())
    })?
}

/// Returns the factors of outputs that give all the same norm, and the whole a norm below 1.
fn equalize(part: &Part, x: &[f32]) -> Factors {
    let by_row = part.is_out_in;
    let squares = Squares::of(part, x, by_row).0;
    let norm: f64 = squares.iter().sum::<f64>().sqrt();
    let mean = norm / (squares.len() as f64).sqrt();
    let factors: Vec<f64> = squares.iter().map(|s| mean / s.sqrt().max(EPS)).collect();
    let after: f64 = squares.iter().zip(&factors).map(|(s, f)| f * f * s).sum::<f64>().sqrt();
    let shrink = 1.0 / (after * MARGIN + EPS);
    Factors { by_row, values: factors.iter().map(|f| (f * shrink) as f32).collect() }
}

/// Takes the squares of `x` into the second moment, and returns the factors that divide by its
/// root and then restore the norm of an orthogonal matrix.
fn normalize(part: &Part, x: &[f32], moments: &mut [f32], beta2: f32) -> Factors {
    let by_row = part.has_row_moments();
    let squares = Squares::of(part, x, by_row).0;
    let n = (part.len() / squares.len()) as f64;
    let norm = (part.side() as f64).sqrt();
    let snap = norm / squares.iter().sum::<f64>().sqrt().max(EPS);
    let (mut before, mut after) = (0.0, 0.0);
    let mut roots = Vec::with_capacity(squares.len());
    for (square, moment) in squares.iter().zip(moments) {
        let square = square * snap * snap;
        *moment += ((square / n) as f32 - *moment) * (1.0 - beta2);
        let root = 1.0 / f64::from(*moment).max(MOMENT_MIN).sqrt();
        before += square;
        after += square * root * root;
        roots.push(root);
    }
    let keep = snap * before.sqrt() / after.sqrt().max(MOMENT_MIN);
    Factors { by_row, values: roots.iter().map(|root| (root * keep) as f32).collect() }
}
