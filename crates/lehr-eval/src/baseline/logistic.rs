//! Multinomial logistic regression on sparse rows.
//!
//! ```text
//! f(W, b) = mean over texts of ( ln Σ_k exp z_k  -  z_y )  +  λ/2 ‖W‖²        z = W x + b
//! ```
//!
//! The function is convex, so there is one best value, whatever the path to it. It is minimised by
//! L-BFGS over all texts; no randomness is involved.

use super::features::Rows;
use super::lbfgs::{Lbfgs, add_scaled, dot};

/// Bound on iterations, above what any data needed so far; not a setting.
const MAX_ITERATIONS: usize = 500;
/// Stop when the value is surely within this many nats per text of the best.
const TOLERANCE: f64 = 1e-5;

/// Labelled rows.
pub(super) struct Problem<'a> {
    pub(super) rows: &'a Rows,
    pub(super) classes: &'a [usize],
    pub(super) n_features: usize,
    pub(super) n_classes: usize,
}

/// Result of minimising.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) n_iterations: usize,
    pub(super) is_converged: bool,
}

/// Derivatives of the function along a line.
struct Slope {
    first: f64,
    second: f64,
}

impl Problem<'_> {
    /// Length of the parameters: `n_classes` weights of each feature, then `n_classes` biases.
    pub(super) fn n_parameters(&self) -> usize {
        (self.n_features + 1) * self.n_classes
    }

    /// Minimises `f` from the parameters given, in place.
    ///
    /// `f` grows at least as fast as `λ/2` times the squared distance. So a gradient `g` bounds the
    /// remaining gain by `‖g‖² / 2λ`, which decides when to stop.
    pub(super) fn minimise(&self, lambda: f64, parameters: &mut [f64]) -> Outcome {
        let mut memory = Lbfgs::default();
        let mut scores = self.scores(parameters);
        let mut gradient = self.gradient(lambda, parameters, &scores);
        for n_iterations in 0..MAX_ITERATIONS {
            if dot(&gradient, &gradient) <= 2.0 * lambda * TOLERANCE {
                return Outcome { n_iterations, is_converged: true };
            }
            let mut step = memory.direction(&gradient);
            let step_scores = self.scores(&step);
            let t = self.line_search(lambda, parameters, &scores, &step, &step_scores);
            if t <= 0.0 {
                // The last digits cannot be improved.
                return Outcome { n_iterations, is_converged: true };
            }
            step.iter_mut().for_each(|s| *s *= t);
            add_scaled(parameters, 1.0, &step);
            add_scaled(&mut scores, t, &step_scores);
            let mut change = self.gradient(lambda, parameters, &scores);
            for (change, gradient) in change.iter_mut().zip(&mut gradient) {
                let new = *change;
                *change -= *gradient;
                *gradient = new;
            }
            memory.push(step, change);
        }
        Outcome { n_iterations: MAX_ITERATIONS, is_converged: false }
    }

    /// `W x + b` of every row: `[n_rows, n_classes]`.
    pub(super) fn scores(&self, parameters: &[f64]) -> Vec<f64> {
        scores(self.rows, parameters, self.n_classes)
    }

    /// `Xᵀ (softmax(z) - onehot(y)) / n + λ W`; the biases are not regularised.
    fn gradient(&self, lambda: f64, parameters: &[f64], scores: &[f64]) -> Vec<f64> {
        let k = self.n_classes;
        let n_weights = self.n_features * k;
        let mut gradient: Vec<f64> = parameters.iter().map(|w| lambda * w).collect();
        gradient[n_weights..].fill(0.0);
        let mut residual = vec![0.0; k];
        for i in 0..self.rows.len() {
            softmax(&scores[i * k..][..k], &mut residual);
            residual[self.classes[i]] -= 1.0;
            residual.iter_mut().for_each(|r| *r /= self.rows.len() as f64);
            add_scaled(&mut gradient[n_weights..], 1.0, &residual);
            let (columns, values) = self.rows.row(i);
            for (&column, &value) in columns.iter().zip(values) {
                add_scaled(&mut gradient[column as usize * k..][..k], f64::from(value), &residual);
            }
        }
        gradient
    }

    /// Finds where the slope along a step is nearly 0, by Newton's method kept within a bracket.
    ///
    /// Scores are linear in the parameters, so this costs no pass over the features.
    fn line_search(
        &self,
        lambda: f64,
        parameters: &[f64],
        scores: &[f64],
        step: &[f64],
        step_scores: &[f64],
    ) -> f64 {
        let n_weights = self.n_features * self.n_classes;
        let (w, d) = (&parameters[..n_weights], &step[..n_weights]);
        let (wd, dd) = (lambda * dot(w, d), lambda * dot(d, d));
        let slope = |t: f64| {
            let data = self.data_slope(scores, step_scores, t);
            Slope { first: data.first + wd + t * dd, second: data.second + dd }
        };
        let start = slope(0.0);
        if start.first >= 0.0 {
            return 0.0;
        }
        let (mut low, mut high) = (0.0, f64::INFINITY);
        let mut t = 1.0;
        for _ in 0..30 {
            let here = slope(t);
            if here.first.abs() <= 0.1 * start.first.abs() {
                return t;
            }
            if here.first < 0.0 {
                low = t;
            } else {
                high = t;
            }
            let newton = t - here.first / here.second;
            let upper = if high.is_finite() { high } else { 10.0 * t };
            let is_inside = newton > low && newton < upper;
            t = match (is_inside, high.is_finite()) {
                (true, _) => newton,
                (false, true) => 0.5 * (low + high),
                (false, false) => upper,
            };
        }
        low
    }

    /// Slope of the mean loss at `z + t d`: the first derivative is `mean(E_p[d] - d_y)`, the
    /// second `mean(Var_p[d])`, with `p = softmax(z + t d)`.
    fn data_slope(&self, scores: &[f64], step_scores: &[f64], t: f64) -> Slope {
        let k = self.n_classes;
        let mut z = vec![0.0; k];
        let mut p = vec![0.0; k];
        let mut slope = Slope { first: 0.0, second: 0.0 };
        for (i, d) in step_scores.chunks_exact(k).enumerate() {
            z.copy_from_slice(&scores[i * k..][..k]);
            add_scaled(&mut z, t, d);
            softmax(&z, &mut p);
            let mean: f64 = p.iter().zip(d).map(|(p, d)| p * d).sum();
            slope.first += mean - d[self.classes[i]];
            slope.second += p.iter().zip(d).map(|(p, d)| p * (d - mean).powi(2)).sum::<f64>();
        }
        slope.first /= self.rows.len() as f64;
        slope.second /= self.rows.len() as f64;
        slope
    }
}

/// `W x + b` of every row: `[n_rows, n_classes]`.
pub(super) fn scores(rows: &Rows, parameters: &[f64], n_classes: usize) -> Vec<f64> {
    let (weights, biases) = parameters.split_at(parameters.len() - n_classes);
    let mut scores = Vec::with_capacity(rows.len() * n_classes);
    for i in 0..rows.len() {
        let start = scores.len();
        scores.extend_from_slice(biases);
        let (columns, values) = rows.row(i);
        for (&column, &value) in columns.iter().zip(values) {
            let weights = &weights[column as usize * n_classes..][..n_classes];
            add_scaled(&mut scores[start..], f64::from(value), weights);
        }
    }
    scores
}

/// `exp(z - max) / Σ exp(z - max)`.
pub(super) fn softmax(z: &[f64], p: &mut [f64]) {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for (p, z) in p.iter_mut().zip(z) {
        *p = (z - max).exp();
        sum += *p;
    }
    p.iter_mut().for_each(|p| *p /= sum);
}

/// Returns the class with the greatest score, the first of equals.
pub(super) fn argmax(scores: &[f64]) -> usize {
    (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(problem: &Problem<'_>, lambda: f64, parameters: &[f64]) -> f64 {
        let k = problem.n_classes;
        let mut p = vec![0.0; k];
        let losses = problem
            .scores(parameters)
            .chunks_exact(k)
            .zip(problem.classes)
            .map(|(z, &y)| {
                softmax(z, &mut p);
                -p[y].ln()
            })
            .sum::<f64>();
        let w = &parameters[..problem.n_features * k];
        losses / problem.rows.len() as f64 + 0.5 * lambda * dot(w, w)
    }

    /// 40 rows of 3 features out of 10, with classes that depend on them only partly.
    fn data() -> (Rows, Vec<usize>) {
        let mut rows = Rows::default();
        let mut classes = Vec::new();
        for i in 0_u32..40 {
            for j in 0..3 {
                rows.columns.push((i * i + 3 * j + i / 7) % 10);
                rows.values.push(0.3 + 0.1 * ((i + j) % 5) as f32);
            }
            rows.ends.push(rows.columns.len());
            classes.push(((i * i + i / 3) % 3) as usize);
        }
        (rows, classes)
    }

    #[test]
    fn the_gradient_is_that_of_the_function() {
        let (rows, classes) = data();
        let problem = Problem { rows: &rows, classes: &classes, n_features: 10, n_classes: 3 };
        let parameters: Vec<f64> = (0..33).map(|i| f64::from(i * 7 % 11) * 0.1 - 0.5).collect();
        let gradient = problem.gradient(0.02, &parameters, &problem.scores(&parameters));
        for i in 0..parameters.len() {
            let at = |h: f64| {
                let mut moved = parameters.clone();
                moved[i] += h;
                value(&problem, 0.02, &moved)
            };
            let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((numeric - gradient[i]).abs() < 1e-8, "{i}: {numeric} {}", gradient[i]);
        }
    }

    #[test]
    fn no_neighbour_of_the_result_is_better_by_more_than_the_tolerance() {
        let (rows, classes) = data();
        let problem = Problem { rows: &rows, classes: &classes, n_features: 10, n_classes: 3 };
        for lambda in [1e-1, 1e-3, 1e-5] {
            let mut parameters = vec![0.0; problem.n_parameters()];
            let start = value(&problem, lambda, &parameters);
            let outcome = problem.minimise(lambda, &mut parameters);
            assert!(outcome.is_converged, "{lambda}: {outcome:?}");
            let best = value(&problem, lambda, &parameters);
            assert!(best < start);
            for i in 0..parameters.len() {
                for h in [-0.1, -0.01, 0.01, 0.1] {
                    let mut moved = parameters.clone();
                    moved[i] += h;
                    assert!(value(&problem, lambda, &moved) > best - TOLERANCE);
                }
            }
        }
    }

    #[test]
    fn without_features_the_biases_are_the_log_frequencies() {
        let rows = Rows { ends: vec![0; 4], ..Rows::default() };
        let problem = Problem { rows: &rows, classes: &[0, 1, 1, 1], n_features: 0, n_classes: 2 };
        let mut parameters = vec![0.0; 2];
        assert!(problem.minimise(1e-6, &mut parameters).is_converged);
        assert!((parameters[1] - parameters[0] - 3.0_f64.ln()).abs() < 1e-3, "{parameters:?}");
    }
}
