//! Many texts at once against each alone, on the CPU and on a GPU, which is emulated unless
//! `LEHR_CUDA=driver`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;

use lehr_infer::{
    BatchGenerator, BatchSize, Error, Finish, Generated, Generator, Limits, Request, Sampler,
    Sampling,
};
use lehr_model::{Config, Model};
use lehr_tensor::{DType, Device, cuda};
use lehr_tokenizer::{Tokenizer, Trainer};
use serde_json::json;

const CAPACITY: usize = 60;

fn tokenizer() -> Tokenizer {
    Trainer::new(261).train(["abc abc"]).unwrap()
}

/// Small models with and without rotation and windows, whose vocabulary is larger than the
/// tokenizer's.
fn models() -> Vec<(&'static str, Model)> {
    let llama = json!({
        "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "initializer_range": 0.3,
    });
    let gpt2 = json!({
        "model_type": "gpt2", "vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2,
        "n_positions": 64, "initializer_range": 0.3,
    });
    let mistral = json!({
        "model_type": "mistral", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "initializer_range": 0.3, "sliding_window": 9,
    });
    [("llama", llama), ("gpt2", gpt2), ("mistral", mistral)]
        .into_iter()
        .map(|(name, json)| (name, Model::new(Config::from_json(&json).unwrap(), 5).unwrap()))
        .collect()
}

/// Texts of many lengths, each with settings of its own, that end in different ways.
fn requests() -> Vec<Request> {
    let hot = Sampling { temperature: 0.9, seed: 11, ..Sampling::GREEDY };
    let penalties = Sampling {
        repetition_penalty: 1.2,
        frequency_penalty: 0.3,
        presence_penalty: 0.4,
        ..Sampling::GREEDY
    };
    let settings = [
        Sampling::GREEDY,
        hot,
        penalties,
        Sampling { top_k: 12, ..hot },
        Sampling { temperature: 1.4, top_k: 60, top_p: 0.9, min_p: 0.02, ..penalties },
    ];
    let lengths = [3, 17, 1, 40, 16, 5, 31, 9, 2, 15];
    let max = [7, 20, 0, 60, 1, 33, 12, 25, 16, 18];
    let request = |i: usize| {
        let prompt = (0..lengths[i]).map(|j| ((17 * i + 7 * j + j * j) % 250) as u32).collect();
        let settings = settings[i % settings.len()];
        let sampling = Sampling { seed: settings.seed.wrapping_add(i as u64), ..settings };
        // Some end early.
        let stop_ids = if i % 3 == 1 { (0..261).step_by(20).collect() } else { vec![] };
        let stop = if i == 7 { vec!["a".to_owned(), "e".to_owned()] } else { vec![] };
        let limits = Limits { max_tokens: Some(max[i]), stop, stop_ids, logprobs: None };
        Request { prompt, sampling, limits }
    };
    (0..lengths.len()).map(request).collect()
}

type Said = (Vec<u32>, String, Finish);

fn said(generated: Generated) -> Said {
    (generated.ids, generated.text, generated.finish)
}

fn alone(model: &Model, requests: &[Request]) -> Vec<Said> {
    let tokenizer = tokenizer();
    let one = |request: &Request| {
        let mut generator = Generator::new(model, &tokenizer, CAPACITY).unwrap();
        let mut sampler = Sampler::new(request.sampling).unwrap();
        let mut ignore = |_: &str| ControlFlow::Continue(());
        said(
            generator
                .generate(&request.prompt, &mut sampler, &request.limits, &mut ignore)
                .unwrap(),
        )
    };
    requests.iter().map(one).collect()
}

/// Each request's text, and the order in which they ended.
fn together(
    generator: &mut BatchGenerator<'_>,
    requests: &[Request],
) -> Result<(Vec<Said>, Vec<usize>), Error> {
    let mut all = vec![None; requests.len()];
    let mut order = Vec::new();
    generator.generate(requests, &mut |index, generated| {
        assert!(all[index].replace(said(generated)).is_none(), "{index} ended twice");
        order.push(index);
        ControlFlow::Continue(())
    })?;
    Ok((all.into_iter().map(Option::unwrap).collect(), order))
}

fn size(texts: usize, n_pages: Option<usize>) -> BatchSize {
    BatchSize { texts, capacity: CAPACITY, n_pages }
}

#[test]
fn every_text_is_the_one_it_would_be_alone() {
    cuda::use_emulator();
    let (tokenizer, requests) = (tokenizer(), requests());
    for (name, model) in models() {
        for device in [Device::Cpu, Device::Cuda(0)] {
            model.to_device(device, DType::F32).unwrap();
            let want = alone(&model, &requests);
            let finishes: Vec<_> = want.iter().map(|(.., finish)| *finish).collect();
            assert!(finishes.contains(&Finish::Stop) && finishes.contains(&Finish::ContextFull));
            for texts in [1, 3, 16] {
                let mut generator =
                    BatchGenerator::new(&model, &tokenizer, size(texts, None)).unwrap();
                let (found, order) = together(&mut generator, &requests).unwrap();
                assert_eq!(found, want, "{name} on {device}, {texts} at once");
                assert_eq!(texts == 1, order.is_sorted());
                // Once more, with what the first time left there.
                let last = &requests[5..];
                assert_eq!(together(&mut generator, last).unwrap().0, want[5..]);
            }
        }
    }
}

#[test]
fn texts_wait_for_pages() {
    cuda::use_emulator();
    let (tokenizer, requests) = (tokenizer(), requests());
    for (name, model) in models() {
        for device in [Device::Cpu, Device::Cuda(0)] {
            model.to_device(device, DType::F32).unwrap();
            let want = alone(&model, &requests);
            // The longest text takes 4 pages of 16 tokens.
            for n_pages in [4, 5, 7] {
                let size = size(6, Some(n_pages));
                let mut generator = BatchGenerator::new(&model, &tokenizer, size).unwrap();
                let (found, _) = together(&mut generator, &requests).unwrap();
                assert_eq!(found, want, "{name} on {device}, {n_pages} pages");
            }
        }
    }
}

#[test]
fn what_cannot_be_generated_is_an_error() {
    let (tokenizer, requests) = (tokenizer(), requests());
    let (_, model) = models().remove(0);
    let mut generator = BatchGenerator::new(&model, &tokenizer, size(3, Some(2))).unwrap();
    let error = together(&mut generator, &requests).unwrap_err();
    let says = error.to_string();
    assert!(says.contains("more pages of the cache are wanted"), "{says}");
    assert!(error.hint().unwrap().contains("more room"));
    // A text that grows beyond the cache.
    let error = together(&mut generator, &requests[5..6]).unwrap_err();
    assert!(error.to_string().contains("1 more pages"), "{error}");
    // It can be used again.
    let want = alone(&model, &requests[..1]);
    assert_eq!(together(&mut generator, &requests[..1]).unwrap().0, want);
    let mut bad = requests[..3].to_vec();
    bad[1].prompt = vec![];
    let error = together(&mut generator, &bad).unwrap_err();
    assert_eq!(error.to_string(), "prompt 2 of 3: the prompt is empty");
    bad[1].prompt = vec![1; CAPACITY];
    let error = together(&mut generator, &bad).unwrap_err();
    assert!(error.to_string().starts_with("prompt 2 of 3: the prompt has 60 tokens"), "{error}");
    bad[1] = Request { sampling: Sampling { top_p: 2.0, ..Sampling::GREEDY }, ..bad[0].clone() };
    assert!(together(&mut generator, &bad).unwrap_err().hint().unwrap().contains("--top-p"));
    assert!(BatchGenerator::new(&model, &tokenizer, size(0, None)).is_err());
    let chatglm = json!({
        "model_type": "chatglm", "vocab_size": 300, "hidden_size": 32, "inner_hidden_size": 48,
        "num_layers": 2, "num_attention_heads": 2, "bos_token_id": 294,
    });
    let chatglm = Model::new(Config::from_json(&chatglm).unwrap(), 5).unwrap();
    let mut generator = BatchGenerator::new(&chatglm, &tokenizer, size(2, None)).unwrap();
    let prompt = Request { prompt: vec![5, 6, 291, 294], ..requests[0].clone() };
    let error = together(&mut generator, &[prompt]).unwrap_err();
    assert!(error.hint().unwrap().contains("one at a time"), "{error}");
}

#[test]
fn whoever_receives_the_texts_may_stop_and_may_ask_how_likely_they_are() {
    cuda::use_emulator();
    let (tokenizer, mut requests) = (tokenizer(), requests());
    let (_, model) = models().remove(0);
    for device in [Device::Cpu, Device::Cuda(0)] {
        model.to_device(device, DType::F32).unwrap();
        let mut generator = BatchGenerator::new(&model, &tokenizer, size(4, None)).unwrap();
        let mut n = 0;
        let mut stop_after_two = |_, _| {
            n += 1;
            if n == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        generator.generate(&requests, &mut stop_after_two).unwrap();
        assert_eq!(n, 2);
        requests[1].limits.logprobs = Some(2);
        let want = alone(&model, &requests);
        let mut n_logprobs = vec![];
        generator
            .generate(&requests, &mut |index, generated| {
                n_logprobs.push((index, generated.logprobs.len()));
                assert_eq!(said(generated), want[index]);
                ControlFlow::Continue(())
            })
            .unwrap();
        let of_second = want[1].0.len();
        assert!(n_logprobs.iter().all(|(i, n)| *n == if *i == 1 { of_second } else { 0 }));
        assert!(of_second > 0);
        requests[1].limits.logprobs = None;
    }
}

#[test]
fn in_sixteen_bits_a_batch_repeats_its_texts() {
    cuda::use_emulator();
    let (tokenizer, requests) = (tokenizer(), requests());
    for (name, model) in models() {
        for dtype in [DType::BF16, DType::F16] {
            model.to_device(Device::Cuda(0), dtype).unwrap();
            let run = || {
                let size = size(3, Some(9));
                let mut generator = BatchGenerator::new(&model, &tokenizer, size).unwrap();
                together(&mut generator, &requests).unwrap()
            };
            let first = run();
            assert_eq!(run(), first, "{name} in {dtype}");
            let of_length = first.0.iter().zip(&requests);
            let mut of_length = of_length.filter(|((.., finish), _)| *finish == Finish::Length);
            assert!(of_length.all(|((ids, ..), r)| Some(ids.len()) == r.limits.max_tokens));
        }
    }
}
