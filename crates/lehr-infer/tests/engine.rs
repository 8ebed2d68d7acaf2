//! Many requests at once against each alone, on the CPU and on a GPU, which is emulated unless
//! `LEHR_CUDA=driver`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;

use lehr_infer::{
    Engine, EngineSettings, Error, Event, Finish, Generated, Limits, Request, RequestId, Sampling,
};
use lehr_model::{Config, Model};
use lehr_tensor::{DType, Device, Philox, cuda};
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
    // Its tokens read the previous token outside of attention.
    let lehr = json!({
        "model_type": "lehr", "lehr_version": 1, "vocab_size": 300, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "mlp": "relu2", "qk_norm": true,
        "x0_scalars": true, "value_embeddings": true, "bigram_rows": 90, "smear": true,
        "backout": true, "key_offset": true,
    });
    [("llama", llama), ("gpt2", gpt2), ("mistral", mistral), ("lehr", lehr)]
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
        Request::new(prompt, sampling, limits)
    };
    (0..lengths.len()).map(request).collect()
}

type Said = (Vec<u32>, String, Finish);

fn said(generated: Generated) -> Said {
    (generated.ids, generated.text, generated.finish)
}

fn settings(max_sequences: usize, cache_tokens: Option<usize>) -> EngineSettings {
    let context = Some(CAPACITY);
    EngineSettings { max_sequences, context, cache_tokens, ..EngineSettings::ONE }
}

fn alone(model: &Model, requests: &[Request]) -> Vec<Said> {
    let tokenizer = tokenizer();
    let one = |request: &Request| {
        let mut engine = Engine::new(model, &tokenizer, settings(1, None)).unwrap();
        let mut text = String::new();
        let mut on_text = |piece: &str| {
            text.push_str(piece);
            ControlFlow::Continue(())
        };
        let generated = engine.generate(request.clone(), &mut on_text).unwrap();
        assert_eq!(text, generated.text, "the pieces are the text");
        said(generated)
    };
    requests.iter().map(one).collect()
}

/// Each request's text, and the order in which they ended.
fn together(
    engine: &mut Engine<'_>,
    requests: &[Request],
) -> Result<(Vec<Said>, Vec<usize>), Error> {
    let ids: Vec<_> =
        requests.iter().map(|r| engine.submit(r.clone())).collect::<Result<_, _>>()?;
    let mut all = vec![None; requests.len()];
    let mut order = Vec::new();
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Finished { id, generated } => {
                    let index = ids.iter().position(|i| *i == id).unwrap();
                    assert!(all[index].replace(said(generated)).is_none(), "{index} ended twice");
                    order.push(index);
                }
                Event::Failed { error, .. } => return Err(error),
                Event::Token { .. } | Event::Text { .. } => {}
            }
        }
    }
    Ok((all.into_iter().map(Option::unwrap).collect(), order))
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
            // The random weights of the last model never end a text.
            let ends = finishes.contains(&Finish::Stop) || name == "lehr";
            assert!(ends && finishes.contains(&Finish::ContextFull), "{name}: {finishes:?}");
            for texts in [1, 3, 16] {
                let mut engine = Engine::new(&model, &tokenizer, settings(texts, None)).unwrap();
                let (found, order) = together(&mut engine, &requests).unwrap();
                assert_eq!(found, want, "{name} on {device}, {texts} at once");
                assert_eq!(texts == 1, order.is_sorted());
                // Once more, with what the first time left there.
                let last = &requests[5..];
                assert_eq!(together(&mut engine, last).unwrap().0, want[5..]);
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
                let settings = settings(6, Some(16 * n_pages));
                let mut engine = Engine::new(&model, &tokenizer, settings).unwrap();
                let (found, _) = together(&mut engine, &requests).unwrap();
                assert!(engine.cached_tokens() <= 16 * n_pages);
                assert_eq!(found, want, "{name} on {device}, {n_pages} pages");
            }
        }
    }
}

#[test]
fn what_cannot_be_generated_is_an_error_of_that_request() {
    let (tokenizer, requests) = (tokenizer(), requests());
    let (_, model) = models().remove(0);
    // The cache has room for 32 tokens: that is the context.
    let mut engine = Engine::new(&model, &tokenizer, settings(3, Some(32))).unwrap();
    assert_eq!(engine.context(), 32);
    let error = engine.submit(requests[3].clone()).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 40 tokens, the context is 32");
    let grows = [Request { limits: Limits::default(), ..requests[0].clone() }];
    let (ids, _, finish) = together(&mut engine, &grows).unwrap().0.remove(0);
    // The last token is not run, so it needs no room.
    assert_eq!((ids.len(), finish), (32 - 3 + 1, Finish::ContextFull));
    let good = engine.submit(requests[0].clone()).unwrap();
    let bad = |change: &dyn Fn(&mut Request)| {
        let mut request = requests[0].clone();
        change(&mut request);
        request
    };
    for (request, says) in [
        (bad(&|r| r.prompt.clear()), "the prompt is empty"),
        (bad(&|r| r.prompt = vec![1; 32]), "the prompt has 32 tokens"),
        (bad(&|r| r.prompt = vec![5, 300]), "which is token 300, expected ids below 300"),
        (bad(&|r| r.sampling.top_p = 2.0), "top_p is 2"),
    ] {
        let error = engine.submit(request).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.hint().is_some());
    }
    let mut ignore = |_: &str| ControlFlow::Continue(());
    let error = engine.generate(requests[2].clone(), &mut ignore).unwrap_err();
    assert!(error.to_string().contains("1 other requests"), "{error}");
    let mut finished = vec![];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Finished { id, generated } = event {
                finished.push((id, said(generated)));
            }
        }
    }
    assert_eq!(finished, [(good, alone(&model, &requests[..1]).remove(0))]);
    assert!(Engine::new(&model, &tokenizer, settings(0, None)).is_err());
    let mut engine = Engine::without_text(&model, settings(1, None)).unwrap();
    let stop = Limits { stop: vec!["x".to_owned()], ..Limits::default() };
    let error = engine.submit(Request { limits: stop, ..requests[0].clone() }).unwrap_err();
    assert!(error.to_string().contains("makes no text"), "{error}");
}

#[test]
fn weights_that_are_not_numbers_are_an_error_and_not_a_token() {
    cuda::use_emulator();
    let (tokenizer, requests) = (tokenizer(), requests());
    let (_, model) = models().remove(0);
    let norm = model.params().get("model.norm.weight").unwrap();
    let nan = lehr_tensor::Tensor::full(norm.shape(), f32::NAN).unwrap();
    norm.set(&nan).unwrap();
    for device in [Device::Cpu, Device::Cuda(0)] {
        model.to_device(device, DType::F32).unwrap();
        let mut engine = Engine::new(&model, &tokenizer, settings(2, None)).unwrap();
        let error = together(&mut engine, &requests[..2]).unwrap_err();
        assert!(error.to_string().contains("261 of 261 logits are NaN"), "{error}");
    }
}

#[test]
fn logits_that_are_not_numbers_end_their_own_request_only() {
    cuda::use_emulator();
    let (tokenizer, requests) = (tokenizer(), requests());
    let (_, model) = models().remove(0);
    for device in [Device::Cpu, Device::Cuda(0)] {
        model.to_device(device, DType::F32).unwrap();
        let want = alone(&model, &requests[..3]);
        // No prompt has this token, and no text of `want`.
        let used = |id: &u32| {
            requests[..3].iter().any(|r| r.prompt.contains(id))
                || want.iter().any(|(ids, ..)| ids.contains(id))
        };
        let bad = (0..261).find(|id| !used(id)).unwrap();
        let embedding = model.params().get("model.embed_tokens.weight").unwrap();
        let before = embedding.tensor().to_host().unwrap().to_vec();
        let mut after = before.clone();
        let width = model.spec().hidden_size;
        after[bad as usize * width] = f32::NAN;
        let set = |values: &[f32]| {
            let shape = embedding.shape();
            model.to_device(Device::Cpu, DType::F32).unwrap();
            embedding.set(&lehr_tensor::Tensor::from_slice(values, shape).unwrap()).unwrap();
            model.to_device(device, DType::F32).unwrap();
        };
        set(&after);
        let mut engine = Engine::new(&model, &tokenizer, settings(4, None)).unwrap();
        let mut failing = requests[0].clone();
        failing.prompt.push(bad);
        let mut all = requests[..3].to_vec();
        all.insert(1, failing);
        let ids: Vec<_> = all.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        while !engine.is_idle() {
            for event in engine.step().unwrap() {
                match event {
                    Event::Finished { id, generated } => found.push((id, said(generated))),
                    Event::Failed { id, error } => failed.push((id, error.to_string())),
                    Event::Token { .. } | Event::Text { .. } => {}
                }
            }
        }
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(failed[0].0 == ids[1] && failed[0].1.contains("logits are NaN"), "{failed:?}");
        found.sort_by_key(|(id, _)| *id);
        assert_eq!(found.into_iter().map(|(_, said)| said).collect::<Vec<_>>(), want);
        set(&before);
    }
}

#[test]
fn requests_are_cancelled_and_report_how_likely_their_tokens_are() {
    cuda::use_emulator();
    let (tokenizer, mut requests) = (tokenizer(), requests());
    let (_, model) = models().remove(0);
    for device in [Device::Cpu, Device::Cuda(0)] {
        model.to_device(device, DType::F32).unwrap();
        requests[1].limits.logprobs = Some(2);
        let want = alone(&model, &requests);
        let mut engine = Engine::new(&model, &tokenizer, settings(4, None)).unwrap();
        let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        let index = |id: RequestId| ids.iter().position(|i| *i == id).unwrap();
        let mut tokens = vec![vec![]; ids.len()];
        let mut n_logprobs = 0;
        let mut n_steps = 0;
        let mut cancelled = None;
        while !engine.is_idle() {
            for event in engine.step().unwrap() {
                match event {
                    Event::Token { id, token, logprob } => {
                        assert_eq!(logprob.is_some(), index(id) == 1);
                        n_logprobs += usize::from(logprob.is_some());
                        tokens[index(id)].push(token);
                    }
                    Event::Text { .. } => {}
                    Event::Finished { id, generated } => {
                        let index = index(id);
                        let n = if index == 1 { generated.ids.len() } else { 0 };
                        assert_eq!(generated.logprobs.len(), n);
                        assert_eq!(said(generated), want[index]);
                        assert_eq!(tokens[index], want[index].0);
                        assert_eq!(engine.cancel(id).map(said), None, "it has ended");
                    }
                    Event::Failed { error, .. } => panic!("{error}"),
                }
            }
            n_steps += 1;
            if n_steps == 3 {
                // One that runs, and one that waits.
                let (running, _, finish) = engine.cancel(ids[3]).map(said).unwrap();
                assert_eq!((&running, finish), (&tokens[3], Finish::Cancelled));
                cancelled = engine.cancel(ids[9]).map(said);
            }
        }
        assert_eq!(cancelled, Some((vec![], String::new(), Finish::Cancelled)));
        assert!(want[3].0.starts_with(&tokens[3]) && tokens[3].len() < want[3].0.len());
        assert_eq!(n_logprobs, want[1].0.len());
        assert!(n_logprobs > 0);
    }
}

#[test]
fn a_long_prompt_does_not_stall_the_others() {
    let tokenizer = tokenizer();
    let (_, model) = models().remove(0);
    let request = |n: u32, max| {
        let limits = Limits { max_tokens: Some(max), ..Limits::default() };
        Request::new((0..n).map(|i| i % 250).collect(), Sampling::GREEDY, limits)
    };
    let settings = EngineSettings { prefill_budget: 6, ..settings(2, None) };
    let mut engine = Engine::new(&model, &tokenizer, settings).unwrap();
    let first = engine.submit(request(4, 20)).unwrap();
    engine.step().unwrap();
    let second = engine.submit(request(40, 3)).unwrap();
    let mut first_tokens_meanwhile = 0;
    'steps: loop {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, .. } if id == first => first_tokens_meanwhile += 1,
                Event::Token { id, .. } if id == second => break 'steps,
                _ => {}
            }
        }
    }
    // 40 tokens, 6 at a time.
    assert_eq!(first_tokens_meanwhile, 7);
}

/// Random numbers for a schedule.
struct Noise(Philox, u64);

impl Noise {
    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        self.1 += 1;
        self.0.block(self.1)[0] as usize % n
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// A request with anything random. Prompts often begin as others do.
fn random_request(noise: &mut Noise) -> Request {
    let shared = noise.one_of(&[0, 0, 16, 17, 32, 40]);
    let shift = noise.below(2) as u32;
    let own = 1 + noise.below(20);
    let mut prompt: Vec<u32> = (0..shared).map(|i| (shift + 3 * i + i * i) % 250).collect();
    prompt.extend((0..own).map(|_| noise.below(250) as u32));
    let hot = Sampling { temperature: 0.9, ..Sampling::GREEDY };
    let sampling = Sampling {
        seed: noise.below(1000) as u64,
        ..noise.one_of(&[
            Sampling::GREEDY,
            hot,
            Sampling { repetition_penalty: 1.3, ..hot },
            Sampling { top_k: 9, presence_penalty: 0.5, ..hot },
            Sampling { top_p: 0.8, ..hot },
        ])
    };
    let limits = Limits {
        max_tokens: Some(noise.below(24)),
        stop_ids: if noise.below(3) == 0 { (0..261).step_by(30).collect() } else { vec![] },
        logprobs: noise.one_of(&[None, Some(0), Some(3)]),
        ..Limits::default()
    };
    Request::new(prompt, sampling, limits)
}

fn random_settings(noise: &mut Noise) -> EngineSettings {
    EngineSettings {
        max_sequences: 1 + noise.below(7),
        context: Some(CAPACITY),
        cache_tokens: noise.one_of(&[None, Some(64), Some(80), Some(128)]),
        prefill_budget: noise.one_of(&[1, 3, 5, 16, 40, 512]),
        reuse_prefixes: noise.below(2) == 0,
    }
}

/// The bits of a log-probability, and those of the most likely tokens.
type LogprobBits = (u32, Vec<(u32, u32)>);

/// The bits of all that a request gave.
fn bits(generated: &Generated) -> (Vec<u32>, String, Vec<LogprobBits>) {
    let logprob = |l: &lehr_infer::TokenLogprob| {
        (l.logprob.to_bits(), l.top.iter().map(|(id, p)| (*id, p.to_bits())).collect())
    };
    let logprobs = generated.logprobs.iter().map(logprob).collect();
    (generated.ids.clone(), generated.text.clone(), logprobs)
}

#[test]
fn no_schedule_changes_a_bit_of_any_request() {
    let tokenizer = tokenizer();
    let stored = json!({
        "model_type": "qwen3", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 64,
    });
    let stored = ["q8_0", "bf16", "q4_0"].map(|format| {
        let config = Config::from_json(&stored).unwrap();
        (format, Model::random(config, format.parse().unwrap(), 7).unwrap())
    });
    for (name, model) in models().into_iter().chain(stored) {
        for seed in 0..20 {
            let mut noise = Noise(Philox::new(seed, 7), 0);
            let requests: Vec<Request> =
                (0..3 + noise.below(8)).map(|_| random_request(&mut noise)).collect();
            let mut ignore = |_: &str| ControlFlow::Continue(());
            let want: Vec<Generated> = requests
                .iter()
                .map(|request| {
                    let mut engine = Engine::new(&model, &tokenizer, settings(1, None)).unwrap();
                    engine.generate(request.clone(), &mut ignore).unwrap()
                })
                .collect();
            let settings = random_settings(&mut noise);
            let mut engine = Engine::new(&model, &tokenizer, settings).unwrap();
            let mut arriving = requests.iter().enumerate().peekable();
            let mut index_of = vec![];
            let mut n_ended = 0;
            while arriving.peek().is_some() || !engine.is_idle() {
                for _ in 0..noise.below(4) {
                    if let Some((index, request)) = arriving.next() {
                        index_of.push((engine.submit(request.clone()).unwrap(), index));
                    }
                }
                for event in engine.step().unwrap() {
                    match event {
                        Event::Finished { id, generated } => {
                            let (_, index) =
                                *index_of.iter().find(|(other, _)| *other == id).unwrap();
                            assert_eq!(
                                bits(&generated),
                                bits(&want[index]),
                                "{name}, seed {seed}, request {index}, {settings:?}"
                            );
                            assert_eq!(generated.finish, want[index].finish);
                            n_ended += 1;
                        }
                        Event::Failed { error, .. } => panic!("{error}"),
                        Event::Token { .. } | Event::Text { .. } => {}
                    }
                }
            }
            assert_eq!(n_ended, requests.len());
        }
    }
}

#[test]
fn a_conversation_reuses_its_pages_and_grows() {
    let tokenizer = tokenizer();
    let json = json!({
        "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 100_000,
        "initializer_range": 0.3,
    });
    let model = Model::new(Config::from_json(&json).unwrap(), 5).unwrap();
    let mut engine = Engine::new(&model, &tokenizer, EngineSettings::ONE).unwrap();
    assert_eq!((engine.context(), engine.cached_tokens()), (100_000, 0));
    let limits = Limits { max_tokens: Some(30), ..Limits::default() };
    let mut prompt: Vec<u32> = (0..200).map(|i| i % 250).collect();
    let mut ignore = |_: &str| ControlFlow::Continue(());
    for turn in 0..6 {
        let request = Request::new(prompt.clone(), Sampling::GREEDY, limits.clone());
        let said = engine.generate(request, &mut ignore).unwrap();
        // All that was said before is there, in whole pages; the last token was never run.
        let n_before = if turn == 0 { 0 } else { prompt.len() - 60 - 1 };
        assert_eq!(said.n_reused, n_before / 16 * 16, "turn {turn}");
        prompt.extend(&said.ids);
        prompt.extend((0..60).map(|i| (i * turn) % 250));
        // Memory follows the conversation, and nothing is kept twice.
        let tokens = 200 + 90 * (turn as usize + 1);
        assert!(engine.cached_tokens() <= (tokens + 16) * 3 / 2 + 512, "turn {turn}");
    }
    assert!(engine.cached_tokens() < 1500);
}

#[test]
fn in_sixteen_bits_a_batch_repeats_its_texts() {
    cuda::use_emulator();
    let (tokenizer, requests) = (tokenizer(), requests());
    for (name, model) in models() {
        for dtype in [DType::BF16, DType::F16] {
            model.to_device(Device::Cuda(0), dtype).unwrap();
            let run = || {
                let settings = settings(3, Some(16 * 9));
                let mut engine = Engine::new(&model, &tokenizer, settings).unwrap();
                together(&mut engine, &requests).unwrap()
            };
            let first = run();
            assert_eq!(run(), first, "{name} in {dtype}");
            let of_length = first.0.iter().zip(&requests);
            let mut of_length = of_length.filter(|((.., finish), _)| *finish == Finish::Length);
            assert!(of_length.all(|((ids, ..), r)| Some(ids.len()) == r.limits.max_tokens));
        }
    }
}
