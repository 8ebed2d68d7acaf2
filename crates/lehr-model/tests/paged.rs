//! Texts in pages against the same texts one by one, on the CPU and on a GPU, which is emulated
//! unless `LEHR_CUDA=driver`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use lehr_model::{Error, KvCache, Model, PagedCache, PagedGraph, Tokens};
use lehr_tensor::inplace::sample::GpuSampler;
use lehr_tensor::{DType, Device, cuda};

fn model(family: &str) -> Model {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    Model::load(&root.join(family)).unwrap()
}

/// Text `index` of `len` tokens.
fn text(index: usize, len: usize) -> Vec<i32> {
    (0..len).map(|i| ((7 * i + 13 * index + i * i) % 80) as i32).collect()
}

/// A text alone: its cache, and the logits after it.
fn alone(model: &Model, ids: &[i32]) -> (KvCache, Vec<f32>) {
    let mut cache = model.cache(1, ids.len() + 1).unwrap();
    let logits = model.next_logits(&Tokens::new(ids, 1, 0).unwrap(), &mut cache).unwrap();
    (cache, logits.to_host().unwrap().to_vec())
}

fn is_near(found: &[f32], want: &[f32]) -> bool {
    let size = want.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    found.len() == want.len() && found.iter().zip(want).all(|(a, b)| (a - b).abs() < 3e-5 * size)
}

#[test]
fn texts_of_all_lengths_go_on_as_if_they_were_alone() {
    cuda::use_emulator();
    for family in ["gpt2", "llama", "mistral", "gemma3", "qwen3-windows", "chatglm2-6b", "glm4"] {
        let model = model(family);
        for device in [Device::Cpu, Device::Cuda(0)] {
            model.to_device(device, DType::F32).unwrap();
            let mut cache = PagedCache::new(&model, 4, 40, 9).unwrap();
            let lengths = [15, 3, 17, 16];
            let mut texts: Vec<_> = lengths.iter().enumerate().map(|(i, n)| text(i, *n)).collect();
            for (row, ids) in texts.iter().enumerate() {
                assert_eq!(cache.join(&alone(&model, ids).0).unwrap(), row);
            }
            let mut rows = vec![2, 0, 1, 3];
            for step in 0..4 {
                if step == 2 {
                    // One leaves, and another takes its place.
                    cache.leave(0);
                    texts[0] = text(9, 5);
                    assert_eq!(cache.join(&alone(&model, &texts[0]).0).unwrap(), 0);
                    rows = vec![3, 2, 0];
                }
                let next: Vec<_> = rows.iter().map(|row| (*row, 11 + step + *row as i32)).collect();
                let logits = cache.next_logits(&model, &next).unwrap().to_host().unwrap();
                for ((row, id), found) in next.iter().zip(logits.data().chunks(logits.shape()[1])) {
                    texts[*row].push(*id);
                    assert_eq!(cache.len(*row), Some(texts[*row].len()));
                    let want = alone(&model, &texts[*row]).1;
                    assert!(is_near(found, &want), "{family} on {device}, step {step}, row {row}");
                }
            }
            (0..4).for_each(|row| cache.leave(row));
            assert!(cache.is_empty() && cache.n_free() == cache.n_pages());
        }
    }
}

/// The most likely token after a text.
fn best(model: &Model, ids: &[i32]) -> i32 {
    let logits = alone(model, ids).1;
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as i32
}

#[test]
fn recorded_work_serves_texts_that_join_and_leave() {
    cuda::use_emulator();
    for family in ["gpt2", "gemma3"] {
        let model = model(family);
        model.to_device(Device::Cuda(0), DType::F32).unwrap();
        let mut cache = PagedCache::new(&model, 3, 40, 8).unwrap();
        let gpu = GpuSampler::new(Device::Cuda(0), 3, model.spec().vocab_size).unwrap();
        let mut graph = PagedGraph::new(&model, &cache).unwrap().unwrap();
        let mut texts: [Option<Vec<i32>>; 3] = [None, None, None];
        for step in 0..9 {
            let join = [(0, 0, 14), (1, 1, 3), (4, 2, 30), (7, 0, 5)];
            for (_, row, len) in join.iter().filter(|(at, ..)| *at == step) {
                let ids = text(step, *len);
                assert_eq!(cache.join(&alone(&model, &ids).0).unwrap(), *row);
                gpu.set_id(*row, best(&model, &ids)).unwrap();
                texts[*row] = Some(ids);
            }
            if step == 6 {
                cache.leave(0);
                texts[0] = None;
            }
            let before = gpu.read().unwrap();
            graph.choose_next(&model, &gpu, &mut cache).unwrap();
            let after = gpu.read().unwrap();
            for (row, ids) in texts.iter_mut().enumerate() {
                let Some(ids) = ids else { continue };
                assert_eq!(before[row], best(&model, ids), "{family}, step {step}, row {row}");
                ids.push(before[row]);
                assert_eq!(after[row], best(&model, ids), "{family}, step {step}, row {row}");
            }
        }
        let others = GpuSampler::new(Device::Cuda(0), 2, 10).unwrap();
        assert!(graph.choose_next(&model, &others, &mut cache).is_err());
    }
    assert!(
        PagedGraph::new(&model("llama"), &PagedCache::new(&model("llama"), 1, 8, 1).unwrap())
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_full_cache_says_how_many_pages_are_wanted() {
    let model = model("llama");
    let mut cache = PagedCache::new(&model, 3, 40, 4).unwrap();
    for (i, len) in [31, 16].into_iter().enumerate() {
        cache.join(&alone(&model, &text(i, len)).0).unwrap();
    }
    assert_eq!((cache.n_pages(), cache.n_free(), cache.n_wanted()), (4, 1, 1));
    let error = cache.join(&alone(&model, &text(2, 17)).0).unwrap_err();
    assert!(matches!(error, Error::PagesFull { wanted: 2, free: 1, all: 4, .. }), "{error}");
    assert!(error.to_string().contains("2 more pages") && error.hint().is_some(), "{error}");
    cache.next_logits(&model, &[(0, 1)]).unwrap();
    // Both texts need a page now; neither gets one, and nothing has changed.
    let error = cache.next_logits(&model, &[(0, 1), (1, 1)]).unwrap_err();
    assert!(matches!(error, Error::PagesFull { wanted: 2, free: 1, .. }), "{error}");
    assert_eq!((cache.n_free(), cache.len(0), cache.len(1)), (1, Some(32), Some(16)));
    cache.next_logits(&model, &[(1, 1)]).unwrap();
    cache.leave(1);
    assert_eq!(cache.n_free(), 2);
    cache.next_logits(&model, &[(0, 1)]).unwrap();
    // Texts that cannot be.
    for bad in [&[(1, 1)][..], &[(7, 1)], &[(0, 1), (0, 1)], &[(0, -1)], &[(0, 1 << 20)]] {
        assert!(cache.next_logits(&model, bad).is_err(), "{bad:?}");
    }
    assert!(cache.join(&alone(&model, &text(0, 41)).0).is_err());
    let mut short = PagedCache::new(&model, 1, 6, 9).unwrap();
    assert_eq!(short.n_pages(), 1);
    short.join(&alone(&model, &text(0, 6)).0).unwrap();
    let error = short.next_logits(&model, &[(0, 1)]).unwrap_err();
    assert!(matches!(error, Error::TooLong { found: 7, limit: 6, .. }), "{error}");
    assert!(short.join(&alone(&model, &text(0, 2)).0).is_err());
}
