//! The scale of a group: a few guesses, each followed by a weighted least-squares fit for the codes
//! that it gives. The guess with the smallest error wins.

/// Rounds to the nearest integer within `low..=high`.
#[inline(always)]
fn code(x: f32, low: f32, high: f32) -> f32 {
    x.round_ties_even().clamp(low, high)
}

/// Sums of `N` terms in eight chains, which compilers turn into vectors.
#[inline(always)]
fn sum<const N: usize>(term: impl Fn(usize) -> f32) -> f32 {
    let mut chains = [0.0f32; 8];
    for i in (0..N).step_by(8) {
        for (k, chain) in chains.iter_mut().enumerate() {
            *chain += term(i + k);
        }
    }
    ((chains[0] + chains[4]) + (chains[2] + chains[6]))
        + ((chains[1] + chains[5]) + (chains[3] + chains[7]))
}

/// The first guesses of [`affine`]: `levels + first + step · i` steps between the smallest and the
/// largest number, for i below `n`.
#[derive(Clone, Copy)]
pub(super) struct Guesses {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) n: usize,
}

/// `(scale, minimum)`, neither negative, for which `scale · q − minimum` with q in `0..=levels` is
/// near `x`: least Σ w (scale q − minimum − x)².
#[inline(always)]
pub(super) fn affine<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    levels: f32,
    guesses: Guesses,
) -> (f32, f32) {
    let low = x.iter().fold(0.0f32, |m, v| m.min(*v));
    let high = x.iter().fold(low, |m, v| m.max(*v));
    if high <= low {
        return (0.0, -low);
    }
    let sum_w = sum::<N>(|i| w[i]);
    let sum_x = sum::<N>(|i| w[i] * x[i]);
    let error = |q: &[f32; N], scale: f32, offset: f32| {
        sum::<N>(|i| {
            let r = scale * q[i] + offset - x[i];
            w[i] * r * r
        })
    };
    let codes = |inverse: f32| -> [f32; N] {
        std::array::from_fn(|i| code(inverse * (x[i] - low), 0.0, levels))
    };
    let scale = (high - low) / levels;
    let mut best = (error(&codes(1.0 / scale), scale, low), scale, low);
    for guess in 0..guesses.n {
        let steps = levels + guesses.first + guesses.step * guess as f32;
        let q = codes(steps / (high - low));
        let sum_q = sum::<N>(|i| w[i] * q[i]);
        let sum_qq = sum::<N>(|i| w[i] * q[i] * q[i]);
        let sum_qx = sum::<N>(|i| w[i] * q[i] * x[i]);
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_qx - sum_x * sum_q) / determinant;
        let mut offset = (sum_qq * sum_x - sum_q * sum_qx) / determinant;
        if offset > 0.0 {
            (scale, offset) = (sum_qx / sum_qq, 0.0);
        }
        let error = error(&q, scale, offset);
        if scale > 0.0 && error < best.0 {
            best = (error, scale, offset);
        }
    }
    (best.1, -best.2)
}

/// The scale, of either sign, for which `scale · q` with q in `−levels..levels` is near `x`: least
/// Σ x² (scale q − x)². Numbers of large magnitude count more, because they matter more in sums.
#[inline(always)]
pub(super) fn symmetric<const N: usize>(x: &[f32; N], levels: f32) -> f32 {
    let max = x.iter().fold(0.0, |m: f32, v| if v.abs() > m.abs() { *v } else { m });
    if max.abs() < 1e-15 {
        return 0.0;
    }
    let (mut best, mut scale) = (0.0, 0.0);
    for guess in -9..=9i8 {
        // The largest number gets the code −levels, the longer side of the range.
        let inverse = -(levels + 0.1 * f32::from(guess)) / max;
        let q: [f32; N] = std::array::from_fn(|i| code(inverse * x[i], -levels, levels - 1.0));
        let sum_qx = sum::<N>(|i| x[i] * x[i] * q[i] * x[i]);
        let sum_qq = sum::<N>(|i| x[i] * x[i] * q[i] * q[i]);
        // The fit removes sum_qx² / sum_qq of the error.
        if sum_qq > 0.0 && sum_qx * sum_qx > best * sum_qq {
            scale = sum_qx / sum_qq;
            best = scale * sum_qx;
        }
    }
    scale
}
