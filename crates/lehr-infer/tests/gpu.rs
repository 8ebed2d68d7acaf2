//! Every family on a GPU against its reference, and generation there. The GPU is emulated, unless `LEHR_CUDA=driver`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lehr_infer::{Check, verify};
use lehr_model::{DecodeGraph, Model, Tokens, Weights};
use lehr_tensor::{DType, Device, cuda, no_grad};

fn goldens() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lehr-model/tests/golden");
    let mut folders: Vec<_> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("golden.safetensors").is_file());
    folders.sort();
    assert!(folders.len() >= 12);
    folders
}

#[test]
fn every_family_equals_its_reference_in_f32() {
    cuda::use_emulator();
    for folder in goldens() {
        let golden = folder.join("golden.safetensors");
        let checks = verify(&folder, &golden, (Device::Cuda(0), DType::F32)).unwrap();
        let failed: Vec<_> =
            checks.iter().filter(|c| !c.passed()).map(|c: &Check| &c.item).collect();
        assert!(failed.is_empty(), "{}: {failed:?}", folder.display());
    }
}

/// `‖a − b‖ / ‖b‖`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (off / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

#[test]
fn sixteen_bits_and_stored_weights_stay_near_f32() {
    cuda::use_emulator();
    let ids: Vec<i32> = (0..24).map(|i| (7 * i + 3) % 90).collect();
    for family in ["llama", "qwen3", "gemma3", "gpt2"] {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../lehr-model/tests/golden").join(family);
        let logits = |model: &Model| {
            no_grad(|| model.logits(&model.hidden(&Tokens::new(&ids, 1, 0).unwrap()).unwrap()))
                .unwrap()
                .to_host()
                .unwrap()
        };
        let model = Model::load(&folder).unwrap();
        let want = logits(&model);
        for dtype in [DType::BF16, DType::F16] {
            model.to_device(Device::Cuda(0), dtype).unwrap();
            let off = distance(logits(&model).data(), want.data());
            assert!(off < 2e-2, "{family} in {dtype}: logits are off by {off:.1e}");
        }
        let int8 = Model::open(&folder, "int8".parse::<Weights>().unwrap()).unwrap();
        let on_cpu = logits(&int8);
        int8.to_device(Device::Cuda(0), DType::F32).unwrap();
        // There activations are rounded to 8 bits too.
        let off = distance(logits(&int8).data(), on_cpu.data());
        assert!(off < 4e-2, "{family}, INT8: logits are off by {off:.1e}");
    }
}

/// Greedy ids and logits of a model's continuation, token by token.
fn continued(model: &Model, prompt: &[i32], n: usize) -> (Vec<i32>, Vec<Vec<f32>>) {
    let mut cache = model.cache(1, prompt.len() + n).unwrap();
    let mut graph: Option<Option<DecodeGraph>> = None;
    let (mut ids, mut all) = (prompt.to_vec(), Vec::new());
    for step in 0..n {
        let logits = if step == 0 {
            model.next_logits(&Tokens::new(prompt, 1, 0).unwrap(), &mut cache).unwrap()
        } else {
            let last = [ids[ids.len() - 1]];
            if graph.is_none() {
                graph = Some(DecodeGraph::new(model, &cache, 1).unwrap());
            }
            match graph.as_mut().unwrap() {
                Some(graph) => graph.next_logits(model, &last, &mut cache).unwrap(),
                None => {
                    let tokens = Tokens::new(&last, 1, cache.len()).unwrap();
                    model.next_logits(&tokens, &mut cache).unwrap()
                }
            }
        };
        assert_eq!(cache.len(), ids.len());
        let logits = logits.to_host().unwrap().to_vec();
        let by_value = |a: &usize, b: &usize| logits[*a].total_cmp(&logits[*b]);
        ids.push((0..logits.len()).max_by(by_value).unwrap() as i32);
        all.push(logits);
    }
    assert_eq!(graph.flatten().is_some(), model.compute().0.is_cuda());
    (ids, all)
}

#[test]
fn recorded_decoding_computes_what_the_cpu_computes() {
    cuda::use_emulator();
    for family in ["gpt2", "llama", "qwen3-windows", "gemma3", "chatglm2-6b", "glm4"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = folder.join("../lehr-model/tests/golden").join(family);
        let model = Model::load(&folder).unwrap();
        let prompt: Vec<i32> = (0..7).map(|i| (11 * i + 5) % 80).collect();
        let (want_ids, want) = continued(&model, &prompt, 12);
        model.to_device(Device::Cuda(0), DType::F32).unwrap();
        let (ids, got) = continued(&model, &prompt, 12);
        assert_eq!(ids, want_ids, "{family}: other tokens");
        for (step, (got, want)) in got.iter().zip(&want).enumerate() {
            let off = distance(got, want);
            assert!(off < 2e-5, "{family}: logits of step {step} are off by {off:.1e}");
        }
    }
}
