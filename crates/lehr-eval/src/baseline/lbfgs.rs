//! The search direction of limited-memory BFGS.

use std::collections::VecDeque;

/// Steps remembered. More gives better directions for more memory.
const MEMORY: usize = 8;

/// One remembered step.
struct Pair {
    /// Change of the parameters, `s`.
    step: Vec<f64>,
    /// Change of the gradient, `y`.
    change: Vec<f64>,
    /// `1 / sᵀy`.
    rho: f64,
}

/// The last steps, from which the inverse of the Hessian is approximated.
#[derive(Default)]
pub(super) struct Lbfgs {
    pairs: VecDeque<Pair>,
}

impl Lbfgs {
    /// `-H g` by the two-loop recursion (Nocedal and Wright, algorithm 7.4). Without remembered
    /// steps it is `-g`.
    pub(super) fn direction(&self, gradient: &[f64]) -> Vec<f64> {
        let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut alphas = Vec::with_capacity(self.pairs.len());
        for pair in self.pairs.iter().rev() {
            let alpha = pair.rho * dot(&pair.step, &q);
            add_scaled(&mut q, -alpha, &pair.change);
            alphas.push(alpha);
        }
        if let Some(last) = self.pairs.back() {
            let scale = 1.0 / (last.rho * dot(&last.change, &last.change));
            q.iter_mut().for_each(|v| *v *= scale);
        }
        for (pair, alpha) in self.pairs.iter().zip(alphas.into_iter().rev()) {
            let beta = pair.rho * dot(&pair.change, &q);
            add_scaled(&mut q, alpha - beta, &pair.step);
        }
        q
    }

    /// Remembers a step. Skips a step along which the gradient did not grow, because it would spoil
    /// the approximation; for a convex function only rounding causes that.
    pub(super) fn push(&mut self, step: Vec<f64>, change: Vec<f64>) {
        let curvature = dot(&step, &change);
        if curvature <= 1e-12 * dot(&change, &change) {
            return;
        }
        if self.pairs.len() == MEMORY {
            self.pairs.pop_front();
        }
        self.pairs.push_back(Pair { step, change, rho: 1.0 / curvature });
    }
}

/// `aᵀb`, in eight partial sums so that the compiler can use vectors.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `a += scale · b`.
pub(super) fn add_scaled(a: &mut [f64], scale: f64, b: &[f64]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += scale * b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quadratic_is_minimised_in_as_many_steps_as_it_has_dimensions() {
        // f(x) = Σ h x² / 2 with exact line search.
        let h = [1.0, 10.0, 100.0, 0.5];
        let gradient = |x: &[f64]| -> Vec<f64> { x.iter().zip(&h).map(|(x, h)| h * x).collect() };
        let mut x = vec![3.0, -2.0, 1.0, 5.0];
        let mut memory = Lbfgs::default();
        for _ in 0..h.len() {
            let g = gradient(&x);
            let d = memory.direction(&g);
            let t = -dot(&g, &d) / dot(&d, &gradient(&d));
            let before = x.clone();
            add_scaled(&mut x, t, &d);
            let step = x.iter().zip(&before).map(|(a, b)| a - b).collect();
            let change = gradient(&x).iter().zip(&g).map(|(a, b)| a - b).collect();
            memory.push(step, change);
        }
        assert!(dot(&x, &x) < 1e-16, "{x:?}");
    }

    #[test]
    fn dot_adds_all_elements() {
        let a: Vec<f64> = (0..19).map(f64::from).collect();
        assert_eq!(dot(&a, &a), 2_109.0);
    }
}
