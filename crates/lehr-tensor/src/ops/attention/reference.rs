use crate::testing::Array;

/// A mask in the words of its definition, decided pair by pair.
#[derive(Clone, Default)]
pub(super) struct Rules {
    pub(super) causal: bool,
    pub(super) window: Option<usize>,
    /// `[B, Tk]`: where the segment of each key begins.
    pub(super) segments: Option<Vec<i32>>,
    pub(super) prefix: Option<Vec<i32>>,
    pub(super) n_keys: Option<usize>,
}

impl Rules {
    /// Whether the query at key position `p` of row `b` sees key `j`.
    fn sees(&self, b: usize, p: i64, j: usize, tk: usize) -> bool {
        if j >= self.n_keys.unwrap_or(tk) {
            return false;
        }
        let key = j as i64;
        let mut segment_start = 0;
        if let Some(starts) = &self.segments {
            if p < 0 || starts[b * tk + j] != starts[b * tk + p as usize] {
                return false;
            }
            segment_start = i64::from(starts[b * tk + j]);
        }
        if let Some(window) = self.window {
            let (distance, window) = (p - key, i64::try_from(window).unwrap_or(i64::MAX));
            if distance >= window || (!self.causal && -distance >= window) {
                return false;
            }
        }
        let prefix = self.prefix.as_ref().map_or(0, |lengths| i64::from(lengths[b]));
        !self.causal || key <= p || key - segment_start < prefix
    }
}

/// `softmax(scale · q kᵀ + mask) v` per head: q `[B, Tq, H, E]`, k and v `[B, Tk, K, E]`.
pub(super) fn attention(q: &Array, k: &Array, v: &Array, rules: &Rules, scale: f64) -> Array {
    let [batch, tq, h, e] = q.shape[..] else { panic!("q has four dimensions") };
    let (tk, kv) = (k.shape[1], k.shape[2]);
    let n_keys = rules.n_keys.unwrap_or(tk);
    let mut out = Array::zeros(&q.shape);
    for (b, i, head) in all(batch, tq, h) {
        let at_q = ((b * tq + i) * h + head) * e;
        let at_k = |j: usize| ((b * tk + j) * kv + head / (h / kv)) * e;
        let p = i as i64 + n_keys as i64 - tq as i64;
        let seen: Vec<usize> = (0..tk).filter(|&j| rules.sees(b, p, j, tk)).collect();
        let score =
            |j: usize| scale * (0..e).map(|d| q.data[at_q + d] * k.data[at_k(j) + d]).sum::<f64>();
        let scores: Vec<f64> = seen.iter().map(|&j| score(j)).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        for (&j, s) in seen.iter().zip(&scores) {
            let weight = (s - max).exp() / total;
            for d in 0..e {
                out.data[at_q + d] += weight * v.data[at_k(j) + d];
            }
        }
    }
    out
}

/// The heads `first..first + n` of `[B, T, all heads · E]` as `[B, T, n, E]`.
pub(super) fn heads(packed: &Array, n_all: usize, first: usize, n: usize) -> Array {
    let [batch, t, width] = packed.shape[..] else { panic!("qkv has three dimensions") };
    let e = width / n_all;
    let mut out = Array::zeros(&[batch, t, n, e]);
    for row in 0..batch * t {
        let from = row * width + first * e;
        out.data[row * n * e..][..n * e].copy_from_slice(&packed.data[from..][..n * e]);
    }
    out
}

fn all(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a * b * c).map(move |i| (i / (b * c), i / c % b, i % c))
}
