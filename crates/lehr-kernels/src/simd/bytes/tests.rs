use super::scalar::Scalar;
use super::{Bytes, BytesKernel, dispatch_bytes};
use crate::{Philox, available_isas, isa, set_isa};

/// Every word of the vocabulary on one set of bytes, as plain numbers.
struct Words<'a> {
    bytes: &'a [u8],
    floats: &'a [f32],
}

impl BytesKernel for Words<'_> {
    type Out = (Vec<[u8; 64]>, Vec<[f32; 4]>, Vec<f32>);

    #[inline(always)]
    fn run<S: Bytes>(self, s: S) -> Self::Out {
        let (p, f) = (self.bytes.as_ptr(), self.floats.as_ptr());
        assert!(self.bytes.len() >= 256 && self.floats.len() >= 32);
        // SAFETY: 256 bytes and 32 floats are there.
        unsafe {
            let (a, b) = (s.load(p), s.load(p.add(100)));
            let small = s.bits::<0>(a, 15);
            let x = s.xor(s.bits::<1>(b, 127), s.splat(0x80));
            // Signed, above −128.
            let x = s.or(x, s.splat(1));
            let ((d0, d1), (t0, t1)) = (s.deal(a, b), s.deal_in_turn(a, b));
            let table: &[u8; 16] = self.bytes[..16].try_into().unwrap();
            let vectors = [
                a,
                s.load_runs(p.add(3), 34),
                s.load_word(p.add(5)),
                s.select_bits(0x8123_4567_89AB_CDEF, 16),
                s.or(a, b),
                x,
                s.bits::<4>(a, 15),
                s.bits::<7>(a, 1),
                s.bits_by_run(a, [1, 0, 6, 5], 3),
                s.shl::<4>(small),
                s.lookup(table, small),
                s.zip_first(a, b),
                s.zip_last(a, b),
                d0,
                d1,
                t0,
                t1,
            ];
            let vectors = vectors.map(|v| {
                let mut out = [0; 64];
                s.store(out.as_mut_ptr(), v);
                out
            });
            let mut square = [[0; 64]; 16];
            s.transpose(p, 12, square.as_mut_ptr().cast(), 64);
            let q = s.q_f16(p.add(1), 18);
            let y = s.q_load(f);
            let quads = [
                q,
                s.q_mul(q, y),
                s.q_fma(y, y, s.q([1.0, 2.0, 3.0, 4.0])),
                s.q_keep(y, 2),
                s.q_u8(0xFE80_7F01),
                s.q_u16(0xFFFE_8000_7F01_0203),
                s.q_f16_splat(p.add(9)),
            ];
            let dots = s.dot(s.dot(s.zero_i(), s.bits::<1>(a, 127), x), small, x);
            let signed = s.dot_signed(s.zero_i(), a, x);
            let weights = s.load_f32(f);
            let sum = |v| s.q_array(s.sum_runs(v)).into_iter().enumerate();
            let weigh =
                |v| sum(s.fma(v, weights, s.zero())).map(|(i, x)| (i + 1) as f32 * x).sum::<f32>();
            let f_table: &[f32; 16] = self.floats[..16].try_into().unwrap();
            let mut stored = [0.0; 16];
            s.store_f32(stored.as_mut_ptr(), s.mul(weights, s.splat_f32(3.0)));
            let sums = [
                stored.iter().sum(),
                weigh(s.to_f32(dots)),
                weigh(s.to_f32(signed)),
                weigh(s.load_f16(p.add(40))),
                weigh(s.load_bf16(p.add(40))),
                weigh(s.load_nibbles(f_table, p.add(70))),
                weigh(s.spread(y)),
                weigh(s.add(weights, s.load_f32(f.add(16)))),
                weigh(s.spread_rows([y, q, s.q_keep(y, 2), s.q([1.0, -2.0, 3.0, 4.5])])),
                weigh(s.to_f32(s.sum_groups([dots, signed, s.dot(dots, small, x), dots]))),
            ];
            ([&vectors[..], &square].concat(), quads.map(|q| s.q_array(q)).to_vec(), sums.to_vec())
        }
    }
}

#[test]
fn every_word_means_the_same_on_every_instruction_set() {
    let _held = crate::testing::hold_settings();
    let before = isa();
    let words = Philox::new(3, 3);
    // No exponents of all ones among the floats: the high byte of each pair is kept small.
    let bytes: Vec<u8> = (0..256u64).map(|i| (words.block(i)[0] & 0xBF) as u8).collect();
    let mut floats = vec![0.0; 32];
    words.fill_uniform(&mut floats, 1.0);
    let (vectors, quads, sums) = Words { bytes: &bytes, floats: &floats }.run(Scalar::<false>);
    for which in available_isas() {
        set_isa(which).unwrap();
        let got = dispatch_bytes(Words { bytes: &bytes, floats: &floats });
        assert_eq!(got.0, vectors, "{which}");
        for (got, want) in got.1.as_flattened().iter().zip(quads.as_flattened()) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{which}: {got}, not {want}");
        }
        for (i, (got, want)) in got.2.iter().zip(&sums).enumerate() {
            assert!(
                (got - want).abs() <= 1e-5 * want.abs().max(1.0),
                "{which} {i}: {got}, not {want}"
            );
        }
    }
    set_isa(before).unwrap();
}
