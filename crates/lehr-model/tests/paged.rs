//! Sequences in pages against the same sequences one by one, on the CPU and on a GPU. The GPU is
//! emulated unless `LEHR_CUDA=driver`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use lehr_model::{DecodeGraph, Error, Layout, Model, PagedCache, PagedSize, Tokens};
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

/// Returns the logits after a sequence alone.
fn alone(model: &Model, ids: &[i32]) -> Vec<f32> {
    let mut cache = model.cache(1, ids.len()).unwrap();
    let logits = model.next_logits(&Tokens::new(ids, 1, 0).unwrap(), &mut cache).unwrap();
    logits.to_host().unwrap().to_vec()
}

fn paged(model: &Model, max_sequences: usize, context: usize, max_pages: usize) -> PagedCache {
    let size = PagedSize { max_sequences, context, max_pages, reuse_prefixes: false };
    PagedCache::new(model, size).unwrap()
}

/// Reads a sequence into the cache in chunks of `chunk` tokens. Returns its row and the last
/// logits.
fn read(cache: &mut PagedCache, model: &Model, ids: &[i32], chunk: usize) -> (usize, Vec<f32>) {
    let row = cache.begin(ids, Layout::causal(ids.len())).unwrap();
    let mut logits = None;
    while cache.len(row).unwrap() < ids.len() {
        let new = &ids[cache.len(row).unwrap()..];
        let n = new.len().min(chunk);
        logits = cache.prefill(model, row, &new[..n], n == new.len()).unwrap();
    }
    (row, logits.unwrap().to_host().unwrap().to_vec())
}

fn is_near(found: &[f32], want: &[f32]) -> bool {
    let size = want.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    found.len() == want.len() && found.iter().zip(want).all(|(a, b)| (a - b).abs() < 3e-5 * size)
}

#[test]
fn texts_of_all_lengths_go_on_as_if_they_were_alone() {
    cuda::use_emulator();
    for family in [
        "gpt2",
        "llama",
        "mistral",
        "gemma3",
        "qwen3-windows",
        "chatglm2-6b",
        "glm4",
        "nanochat",
        "lehr",
    ] {
        let model = model(family);
        for device in [Device::Cpu, Device::Cuda(0)] {
            model.to_device(device, DType::F32).unwrap();
            let mut cache = paged(&model, 4, 40, 9);
            let lengths = [15, 3, 17, 16];
            let mut texts: Vec<_> = lengths.iter().enumerate().map(|(i, n)| text(i, *n)).collect();
            for (row, ids) in texts.iter().enumerate() {
                let (found, logits) = read(&mut cache, &model, ids, [512, 1, 7, 16][row]);
                assert_eq!(found, row);
                let want = alone(&model, ids);
                assert!(is_near(&logits, &want), "{family} on {device}, prompt {row}");
            }
            let mut rows = vec![2, 0, 1, 3];
            for step in 0..4 {
                if step == 2 {
                    // One leaves, and another takes its place.
                    cache.end(0);
                    texts[0] = text(9, 5);
                    assert_eq!(read(&mut cache, &model, &texts[0], 3).0, 0);
                    rows = vec![3, 2, 0];
                }
                let next: Vec<_> = rows.iter().map(|row| (*row, 11 + step + *row as i32)).collect();
                let logits = cache.next_logits(&model, &next).unwrap().to_host().unwrap();
                for ((row, id), found) in next.iter().zip(logits.data().chunks(logits.shape()[1])) {
                    texts[*row].push(*id);
                    assert_eq!(cache.len(*row), Some(texts[*row].len()));
                    let want = alone(&model, &texts[*row]);
                    assert!(is_near(found, &want), "{family} on {device}, step {step}, row {row}");
                }
            }
            (0..4).for_each(|row| cache.end(row));
            assert!(cache.is_empty() && cache.n_available() == 9);
        }
    }
}

/// Returns the most likely token after a text.
fn best(model: &Model, ids: &[i32]) -> i32 {
    let logits = alone(model, ids);
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as i32
}

#[test]
fn recorded_work_serves_texts_that_join_and_leave() {
    cuda::use_emulator();
    for family in ["gpt2", "gemma3"] {
        let model = model(family);
        model.to_device(Device::Cuda(0), DType::F32).unwrap();
        let mut cache = paged(&model, 3, 40, 8);
        let gpu = GpuSampler::new(Device::Cuda(0), 3, model.spec().vocab_size).unwrap();
        let mut graph = DecodeGraph::new(&model, &cache).unwrap().unwrap();
        let mut texts: [Option<Vec<i32>>; 3] = [None, None, None];
        for step in 0..9 {
            let join = [(0, 0, 14), (1, 1, 3), (4, 2, 30), (7, 0, 5)];
            for (_, row, len) in join.iter().filter(|(at, ..)| *at == step) {
                let ids = text(step, *len);
                assert_eq!(read(&mut cache, &model, &ids, 11).0, *row);
                gpu.set_id(*row, best(&model, &ids)).unwrap();
                texts[*row] = Some(ids);
            }
            if step == 6 {
                cache.end(0);
                texts[0] = None;
            }
            let before = gpu.ids().to_host().unwrap().ids().to_vec();
            let last: Vec<_> = (0..3).filter(|row| texts[*row].is_some()).collect();
            let last: Vec<_> = last.into_iter().map(|row| (row, before[row])).collect();
            graph.choose_next(&model, &gpu, &mut cache, &last).unwrap();
            let after = gpu.read().unwrap();
            for (row, ids) in texts.iter_mut().enumerate() {
                let Some(ids) = ids else { continue };
                assert_eq!(before[row], best(&model, ids), "{family}, step {step}, row {row}");
                ids.push(before[row]);
                assert_eq!(after[row], best(&model, ids), "{family}, step {step}, row {row}");
            }
        }
        let others = GpuSampler::new(Device::Cuda(0), 2, 10).unwrap();
        assert!(graph.choose_next(&model, &others, &mut cache, &[]).is_err());
    }
    let on_cpu = model("llama");
    assert!(DecodeGraph::new(&on_cpu, &paged(&on_cpu, 1, 8, 1)).unwrap().is_none());
}

#[test]
fn sequences_that_begin_alike_share_pages_with_the_same_bits() {
    let model = model("llama");
    let size = PagedSize { max_sequences: 2, context: 100, max_pages: 9, reuse_prefixes: true };
    let mut cache = PagedCache::new(&model, size).unwrap();
    let (first, want) = read(&mut cache, &model, &text(1, 50), 512);
    assert_eq!(cache.n_available(), 9 - 4);
    // While the first sequence exists, and after it has ended.
    for _ in 0..2 {
        let ids = text(1, 50);
        let row = cache.begin(&ids, Layout::causal(50)).unwrap();
        assert_eq!(cache.len(row), Some(48));
        let logits = cache.prefill(&model, row, &ids[48..], true).unwrap().unwrap();
        assert_eq!(logits.to_vec(), want);
        cache.end(row);
        cache.end(first);
    }
    // The last token is always run.
    let row = cache.begin(&text(1, 48), Layout::causal(48)).unwrap();
    assert_eq!(cache.len(row), Some(32));
    cache.end(row);
    // Others need the pages: the beginning is kept longest.
    read(&mut cache, &model, &text(2, 100), 512);
    let row = cache.begin(&text(1, 50), Layout::causal(50)).unwrap();
    assert_eq!(cache.len(row), Some(32));
}

#[test]
fn a_full_cache_says_how_many_pages_are_wanted() {
    let model = model("llama");
    let mut cache = paged(&model, 3, 40, 4);
    for (i, len) in [31, 16].into_iter().enumerate() {
        read(&mut cache, &model, &text(i, len), 512);
    }
    assert_eq!((cache.n_available(), cache.n_wanted(0, 1), cache.n_wanted(1, 1)), (1, 0, 1));
    let row = cache.begin(&text(2, 17), Layout::causal(17)).unwrap();
    let error = cache.prefill(&model, row, &text(2, 17), true).unwrap_err();
    assert!(matches!(error, Error::PagesFull { wanted: 2, free: 1, all: 4, .. }), "{error}");
    assert!(error.to_string().contains("2 more pages") && error.hint().is_some(), "{error}");
    cache.end(row);
    cache.next_logits(&model, &[(0, 1)]).unwrap();
    // Both need a page now; neither gets one, and nothing has changed.
    let error = cache.next_logits(&model, &[(0, 1), (1, 1)]).unwrap_err();
    assert!(matches!(error, Error::PagesFull { wanted: 2, free: 1, .. }), "{error}");
    assert_eq!((cache.n_available(), cache.len(0), cache.len(1)), (1, Some(32), Some(16)));
    cache.next_logits(&model, &[(1, 1)]).unwrap();
    cache.end(1);
    assert_eq!(cache.n_available(), 2);
    cache.next_logits(&model, &[(0, 1)]).unwrap();
    // Impossible requests.
    for bad in [&[(1, 1)][..], &[(7, 1)], &[(0, 1), (0, 1)], &[(0, -1)], &[(0, 1 << 20)]] {
        assert!(cache.next_logits(&model, bad).is_err(), "{bad:?}");
    }
    let mut short = paged(&model, 1, 6, 9);
    assert_eq!((short.context(), short.n_available(), short.n_pages()), (6, 1, 0));
    let (row, _) = read(&mut short, &model, &text(0, 6), 4);
    let error = short.next_logits(&model, &[(row, 1)]).unwrap_err();
    assert!(matches!(error, Error::TooLong { found: 7, limit: 6, .. }), "{error}");
    assert!(short.begin(&text(0, 2), Layout::causal(2)).is_err(), "all rows have sequences");
}
