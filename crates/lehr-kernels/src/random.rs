//! Counter-based randomness: the n-th number of a stream costs the same as the first.

use std::f32::consts::TAU;

use crate::threads;

/// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
///
/// `(seed, stream)` identifies a stream, and its blocks are numbered. Any thread can compute any
/// block at any time. So results depend neither on the order of calls nor on the number of threads,
/// and a resumed run draws the same numbers as an uninterrupted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
    stream: u64,
}

impl Philox {
    /// Creates the stream `stream` of `seed`.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], stream }
    }

    /// Returns the seed and the stream.
    pub fn name(&self) -> (u64, u64) {
        (u64::from(self.key[0]) | u64::from(self.key[1]) << 32, self.stream)
    }

    /// Returns the four random words of block `index`.
    #[must_use]
    pub fn block(&self, index: u64) -> [u32; 4] {
        let mut c =
            [index as u32, (index >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        let mut key = self.key;
        for _ in 0..10 {
            let a = u64::from(c[0]) * 0xD251_1F53;
            let b = u64::from(c[2]) * 0xCD9E_8D57;
            c = [
                (b >> 32) as u32 ^ c[1] ^ key[0],
                b as u32,
                (a >> 32) as u32 ^ c[3] ^ key[1],
                a as u32,
            ];
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        c
    }

    /// Returns number `index` of the stream: uniform in `[0, 1)`, with 24 random bits.
    #[must_use]
    pub fn uniform(&self, index: u64) -> f32 {
        let word = self.block(index / 4)[(index % 4) as usize];
        (word >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Fills `out` with normal numbers of mean 0 and the given standard deviation (Box-Muller),
    /// in parallel. Number i comes from block i / 4, whichever thread draws it.
    pub fn fill_normal(&self, out: &mut [f32], std: f32) {
        /// Numbers per task, a multiple of the four of a block.
        const CHUNK: usize = 1 << 16;
        threads::run_chunks(out, CHUNK, |index, out| {
            let first = (index * CHUNK / 4) as u64;
            for (block, chunk) in out.chunks_mut(4).enumerate() {
                let words = self.block(first + block as u64);
                for (pair, values) in chunk.chunks_mut(2).enumerate() {
                    // The radius needs a number in (0, 1]: adding one avoids ln(0).
                    let u = (words[2 * pair] as f32 + 1.0) * (1.0 / 4_294_967_296.0);
                    let angle = words[2 * pair + 1] as f32 * (TAU / 4_294_967_296.0);
                    let radius = (-2.0 * u.ln()).max(0.0).sqrt() * std;
                    let (sin, cos) = angle.sin_cos();
                    values[0] = radius * cos;
                    if let Some(second) = values.get_mut(1) {
                        *second = radius * sin;
                    }
                }
            }
        });
    }

    /// Fills `out` with uniform numbers in `[-bound, bound)`.
    pub fn fill_uniform(&self, out: &mut [f32], bound: f32) {
        for (i, value) in out.iter_mut().enumerate() {
            *value = (self.uniform(i as u64) * 2.0 - 1.0) * bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_test_vectors() {
        // Known answers of the Random123 distribution, philox4x32-10.
        let zero = Philox::new(0, 0);
        assert_eq!(zero.block(0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Philox::new(u64::MAX, u64::MAX);
        assert_eq!(ones.block(u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn normal_numbers_have_the_asked_mean_and_deviation() {
        let mut values = vec![0.0; 100_000];
        Philox::new(7, 1).fill_normal(&mut values, 0.5);
        let mean = values.iter().sum::<f32>() / 1e5;
        let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.01 && (var.sqrt() - 0.5).abs() < 0.01, "mean {mean}, var {var}");
    }
}
