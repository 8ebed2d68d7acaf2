//! A copy that is damaged does not pass, whatever its format.

use std::fs;
use std::path::{Path, PathBuf};

use lehr_model::Model;
use lehr_model::io::gguf::FileType;
use lehr_tensor::Tensor;
use serde_json::Value;

use super::{Fault, Output, Part, Proof, compare, outputs};
use crate::convert::Target;

const IDS: [i32; 24] =
    [3, 17, 40, 99, 7, 150, 12, 5, 88, 61, 2, 133, 47, 20, 76, 9, 101, 54, 33, 118, 64, 15, 142, 8];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../lehr-model/tests/golden/llama")
}

/// A copy of the golden Llama with every f32 of the named tensors changed.
fn damaged(names: &[&str], change: impl Fn(f32) -> f32) -> Output {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden().join("config.json"), folder.path().join("config.json")).unwrap();
    let mut bytes = fs::read(golden().join("model.safetensors")).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
    let header: Value = serde_json::from_slice(&bytes[8..n]).unwrap();
    for name in names {
        let at = |i: usize| n + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        for value in bytes[at(0)..at(1)].as_chunks_mut().0 {
            *value = change(f32::from_le_bytes(*value)).to_le_bytes();
        }
    }
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    outputs(&Model::load(folder.path()).unwrap(), &IDS).unwrap()
}

fn proof(got: &Output, format: FileType) -> Proof {
    let want = outputs(&Model::load(&golden()).unwrap(), &IDS).unwrap();
    compare(&want, got, Target::Gguf(format).bounds())
}

#[test]
fn a_copy_with_a_wrong_layer_passes_in_no_format() {
    let same = damaged(&[], |x| x);
    let output = ["model.layers.1.self_attn.o_proj.weight"];
    let wrong = [
        ("a missing sub-layer", damaged(&output, |_| 0.0)),
        ("a sub-layer of the wrong sign", damaged(&output, |x| -x)),
        ("a wrong head", damaged(&["lm_head.weight"], |x| -x)),
    ];
    for format in FileType::ALL {
        assert!(proof(&same, format).passed(), "{}", format.name());
        for (what, copy) in &wrong {
            let proof = proof(copy, format);
            assert!(!proof.passed(), "{what} as {}: {proof:?}", format.name());
        }
    }
    // A wrong scale of 5 % moves the logits by 2.6 %, which the rounding to bf16 does not explain.
    let scaled = damaged(&output, |x| 1.05 * x);
    assert!(!proof(&scaled, FileType::BF16).passed());
}

#[test]
fn each_measure_is_bounded_by_itself() {
    let of = |change: &dyn Fn(&mut Proof)| {
        let same = damaged(&[], |x| x);
        let mut proof = proof(&same, FileType::Q8_0);
        change(&mut proof);
        proof.faults().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(of(&|_| ()), Vec::<String>::new());
    type Case<'a> = (&'a dyn Fn(&mut Proof), &'a str);
    let cases: [Case<'_>; 6] = [
        (&|p| p.error = 0.06, "weights: relative error 6.000e-2, expected at most 5.0e-2"),
        (&|p| p.error = f64::NAN, "weights: relative error NaN, expected at most 5.0e-2"),
        (&|p| p.kl = Some(0.01), "weights: KL divergence 1.00e-2 nats, expected at most 3.4e-3"),
        (&|p| p.top1 = Some(0.9), "weights: same first choice 90.0 %, expected at least 94 %"),
        (
            &|p| p.probe_error = Some(0.2),
            "weights: relative error 2.000e-1 on added tokens and several scripts, expected at \
             most 1.0e-1",
        ),
        (
            &|p| p.differences.push(Fault { part: Part::Tokenizer, text: "x is y".to_owned() }),
            "tokenizer: x is y",
        ),
    ];
    for (change, fault) in cases {
        assert_eq!(of(change), [fault]);
    }
}

/// The measures of two rows, computed by hand.
#[test]
fn the_measures_are_those_of_their_formulas() {
    let output = |logits: [f32; 4]| Output {
        hidden: Tensor::zeros([2, 1]).unwrap(),
        logits: Some(Tensor::from_slice(&logits, [2, 2]).unwrap()),
    };
    let ln3 = 3f32.ln();
    let bounds = Target::Gguf(FileType::F32).bounds();
    let proof = compare(&output([0.0, ln3, 1.0, 1.0]), &output([ln3, 0.0, 1.0, 1.0]), bounds);
    // p = (1/4, 3/4), q = (3/4, 1/4): Σ p ln(p / q) = ln(3) / 2, and 0 in the second row.
    assert!((proof.kl.unwrap() - 3f64.ln() / 4.0).abs() < 1e-7, "{proof:?}");
    assert!((proof.error - 2.0).abs() < 1e-6 && proof.top1 == Some(0.5), "{proof:?}");
    assert!(!proof.passed() && proof.n_tokens == 2);
}
