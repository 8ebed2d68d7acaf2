//! A random permutation of 0..n that gives any element in constant time and memory.

/// Rounds of the network; four are enough for a pseudo-random permutation of strong rounds
/// (Luby and Rackoff 1988), and the rounds here are only good mixers.
const ROUNDS: u64 = 6;

/// A permutation of `0..count` drawn by `key`.
///
/// A Feistel network permutes the numbers of an even number of bits; a result outside the range is
/// permuted again until it is inside ("cycle walking"), fewer than four times on average.
///
/// Black and Rogaway 2002, <https://web.cs.ucdavis.edu/~rogaway/papers/subset.pdf>.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permutation {
    count: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    pub(crate) fn new(count: u64, key: u64) -> Self {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Self { count, half_bits: bits.div_ceil(2).max(1), key }
    }

    /// Element `index`, which must be below the count.
    pub(crate) fn at(&self, index: u64) -> u64 {
        debug_assert!(index < self.count, "index {index} of a permutation of {}", self.count);
        let mut value = self.network(index);
        while value >= self.count {
            value = self.network(value);
        }
        value
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let noise = mix(self.key ^ mix(right ^ (round << 56)));
            (left, right) = (right, left ^ (noise & mask));
        }
        (left << self.half_bits) | right
    }
}

/// SplitMix64: neighbouring inputs give unrelated outputs.
///
/// Source: <https://prng.di.unimi.it/splitmix64.c>.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_appears_exactly_once() {
        for count in (1..70).chain([255, 256, 257, 1000, 4097]) {
            for key in [0, 1, u64::MAX] {
                let permutation = Permutation::new(count, key);
                let mut seen: Vec<u64> = (0..count).map(|i| permutation.at(i)).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..count).collect::<Vec<_>>(), "count {count}, key {key}");
            }
        }
    }

    #[test]
    fn keys_give_unrelated_orders_without_fixed_places() {
        let count = 1000;
        let orders: Vec<Vec<u64>> = (0..50)
            .map(|key| {
                let permutation = Permutation::new(count, mix(key));
                (0..count).map(|i| permutation.at(i)).collect()
            })
            .collect();
        // One fixed point and one agreement between two orders are expected; 10 in 1000 have a
        // chance of about 1e-7 each.
        for (index, order) in orders.iter().enumerate() {
            let fixed = order.iter().zip(0..).filter(|(a, b)| *a == b).count();
            assert!(fixed < 10, "order {index} keeps {fixed} places");
            let other = &orders[(index + 1) % orders.len()];
            let same = order.iter().zip(other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "orders {index} and the next agree in {same} places");
        }
        // The mean of the first elements is that of random numbers: 499.5 +- 41 (one sigma).
        let mean = orders.iter().map(|order| order[0] as f64).sum::<f64>() / 50.0;
        assert!((mean - 499.5).abs() < 165.0, "mean of the first elements is {mean}");
    }
}
