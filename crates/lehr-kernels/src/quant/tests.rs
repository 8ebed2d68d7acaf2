//! Codecs against the `gguf` Python package (`tools/golden/quant.py`), and their errors.

use safetensors::SafeTensors;

use super::WeightFormat::{
    self, BF16, F16, F32, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K,
    Q8_0,
};
use crate::{Philox, available_isas, isa, set_isa, threads};

fn golden() -> Vec<u8> {
    let root = std::env::var("CARGO_MANIFEST_DIR");
    let root = root.as_deref().unwrap_or(env!("CARGO_MANIFEST_DIR"));
    let path = format!("{root}/tests/golden/quant.safetensors");
    std::fs::read(&path).unwrap_or_else(|e| panic!("reading {path}: {e}"))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn dequantized_blocks_have_the_bits_of_gguf() {
    let _held = crate::testing::hold_settings();
    let before = isa();
    let file = golden();
    let file = SafeTensors::deserialize(&file).unwrap();
    for format in WeightFormat::ALL.into_iter().filter(|f| *f != F32) {
        let blocks = file.tensor(&format!("{format}.blocks")).unwrap();
        let want = floats(file.tensor(&format!("{format}.values")).unwrap().data());
        assert!(want.len() >= 256, "{format}: golden blocks");
        for which in available_isas() {
            set_isa(which).unwrap();
            let mut got = vec![f32::NAN; want.len()];
            format.dequantize(blocks.data(), &mut got);
            assert_eq!(bits(&got), bits(&want), "{format} with {which}");
        }
    }
    set_isa(before).unwrap();
}

#[test]
fn simple_formats_quantize_to_the_bytes_of_gguf() {
    let file = golden();
    let file = SafeTensors::deserialize(&file).unwrap();
    let x = floats(file.tensor("x").unwrap().data());
    let mut n_checked = 0;
    for format in WeightFormat::ALL {
        let Ok(want) = file.tensor(&format!("{format}.quantized")) else { continue };
        let mut got = vec![0xA5; format.n_bytes(x.len())];
        format.quantize(&x, &mut got);
        assert_eq!(got, want.data(), "{format}");
        n_checked += 1;
    }
    assert_eq!(n_checked, 7, "F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0");
}

pub(super) fn normal(n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Philox::new(5, 5).fill_normal(&mut x, 0.02);
    x
}

pub(super) fn relative_rms(x: &[f32], y: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = x.iter().zip(y).map(|(x, y)| square(x - y)).sum();
    (error / x.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

#[test]
fn normal_numbers_come_back_with_the_documented_error() {
    let x = normal(1 << 17);
    for format in WeightFormat::ALL {
        let mut bytes = vec![0xA5; format.n_bytes(x.len())];
        format.quantize(&x, &mut bytes);
        let mut y = vec![f32::NAN; x.len()];
        format.dequantize(&bytes, &mut y);
        let (error, documented) = (relative_rms(&x, &y), f64::from(format.relative_error()));
        let near =
            if format == F32 { error == 0.0 } else { (error / documented - 1.0).abs() < 0.03 };
        assert!(near, "{format}: error {error:.6}, documented {documented:.6}");
    }
}

#[test]
fn threads_and_instruction_sets_change_no_byte() {
    let _held = crate::testing::hold_settings();
    let (isa_before, threads_before) = (isa(), threads::n_threads());
    let x = normal(50 * 1024);
    for format in WeightFormat::ALL {
        let mut results = Vec::new();
        for which in available_isas() {
            set_isa(which).unwrap();
            for n in [1, 3] {
                threads::set_n_threads(n);
                let mut bytes = vec![0; format.n_bytes(x.len())];
                format.quantize(&x, &mut bytes);
                results.push(bytes);
            }
        }
        assert!(results.iter().all(|r| *r == results[0]), "{format}");
    }
    set_isa(isa_before).unwrap();
    threads::set_n_threads(threads_before);
}

/// Largest error of an element relative to the largest magnitude of its block, and the same for
/// blocks of numbers near 1e-4, where scales in f16 are subnormal. F32 is exact, F16 and BF16 lose
/// half a unit in their last place; other bounds are one and a half times what
/// [`blocks_at_the_edges_survive`] measured.
fn largest_error(format: WeightFormat) -> (f32, f32) {
    match format {
        F32 => (0.0, 0.0),
        F16 => (4.9e-4, 6e-4),
        BF16 => (3.9e-3, 3.9e-3),
        Q4_0 => (0.093, 0.093),
        Q4_1 => (9.7e-3, 0.013),
        Q5_0 => (0.046, 0.049),
        Q5_1 => (4.9e-4, 4.3e-3),
        Q8_0 => (6e-3, 0.039),
        Q2_K => (0.16, 0.16),
        Q3_K => (0.097, 0.11),
        Q4_K => (0.047, 0.054),
        // Its smaller steps need smaller scales, which f16 rounds most.
        Q5_K => (0.027, 0.34),
        Q6_K => (0.024, 0.036),
        IQ4_NL => (0.13, 0.13),
        IQ4_XS => (0.13, 0.17),
    }
}

/// Quantises zeros, one number, equal numbers, numbers of one sign, huge and tiny ones. The error
/// stays within the bound of the format, and nothing becomes NaN.
#[test]
fn blocks_at_the_edges_survive() {
    let ramp = |i: usize| (i as f32 - 100.0) * 0.01;
    let blocks: [(&str, &dyn Fn(usize) -> f32); 8] = [
        ("zeros", &|_| 0.0),
        ("one", &|i| if i == 77 { -3.0 } else { 0.0 }),
        ("equal", &|_| 0.7),
        ("equal negative", &|_| -0.7),
        ("positive", &|i| ramp(i) + 5.0),
        ("negative", &|i| ramp(i) - 5.0),
        ("huge", &|i| ramp(i) * 1e4),
        ("tiny", &|i| ramp(i) * 1e-4),
    ];
    for (name, at) in blocks {
        let x: Vec<f32> = (0..256).map(at).collect();
        let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for format in WeightFormat::ALL {
            let mut bytes = vec![0xA5; format.n_bytes(256)];
            format.quantize(&x, &mut bytes);
            let mut y = vec![f32::NAN; 256];
            format.dequantize(&bytes, &mut y);
            let (bound, bound_of_tiny) = largest_error(format);
            let most = largest * if name == "tiny" { bound_of_tiny } else { bound };
            for (x, y) in x.iter().zip(&y) {
                assert!((x - y).abs() <= most, "{name} in {format}: {x} became {y}");
            }
        }
    }
}

#[test]
fn ids_and_sizes_are_those_of_gguf() {
    for format in WeightFormat::ALL {
        assert_eq!(WeightFormat::from_ggml_id(format.ggml_id()), Some(format));
        let n = format.block_len();
        assert_eq!((format.n_bytes(0), format.n_bytes(3 * n)), (0, 3 * format.block_bytes()));
    }
    assert_eq!(WeightFormat::from_ggml_id(4), None);
    assert_eq!(WeightFormat::Q4_K.to_string(), "Q4_K");
}
