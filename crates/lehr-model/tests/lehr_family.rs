//! lehr's own family: without parts it is a Llama, and every part alone decodes, recomputes and
//! differentiates correctly. The golden models hold all parts together.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lehr_model::io::gguf::{FileType, GgufOptions, Metadata};
use lehr_model::{
    ActivationCheckpointing, Config, Error, Layout, LehrConfig, LehrParts, LlamaConfig, MlpKind,
    Model, PackedText, PagedCache, PagedSize, Role, RopeConfig, Tokens,
};
use lehr_tensor::{Philox, Tensor, no_grad};

const VOCAB: usize = 61;
const STD: f32 = 0.2;

fn config(parts: LehrParts) -> LehrConfig {
    LehrConfig {
        lehr_version: LehrConfig::VERSION,
        vocab_size: VOCAB,
        hidden_size: 32,
        intermediate_size: 40,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 48,
        rms_norm_eps: 1e-5,
        initializer_range: STD,
        embedding_initializer_range: None,
        head_initializer_range: None,
        tie_word_embeddings: false,
        parts,
        rope: RopeConfig::with_theta(10_000.0),
        bos_token_id: None,
        eos_token_id: None,
        pad_token_id: None,
    }
}

/// Every part alone, by name.
fn parts() -> Vec<(&'static str, LehrParts)> {
    let off = LehrParts::default;
    vec![
        ("mlp", LehrParts { mlp: MlpKind::Relu2, ..off() }),
        ("norm_weights", LehrParts { norm_weights: false, ..off() }),
        ("embedding_norm", LehrParts { embedding_norm: true, ..off() }),
        ("qk_norm", LehrParts { qk_norm: true, ..off() }),
        ("qk_norm_gain", LehrParts { qk_norm: true, qk_norm_gain: 1.7, ..off() }),
        ("softcap", LehrParts { final_logit_softcapping: Some(2.0), ..off() }),
        ("residual_scalars", LehrParts { residual_scalars: true, ..off() }),
        ("x0_scalars", LehrParts { x0_scalars: true, ..off() }),
        ("value_embeddings", LehrParts { value_embeddings: true, ..off() }),
        ("bigram_rows", LehrParts { bigram_rows: 37, ..off() }),
        ("smear", LehrParts { smear: true, ..off() }),
        ("backout", LehrParts { backout: true, ..off() }),
        ("key_offset", LehrParts { key_offset: true, ..off() }),
    ]
}

/// A model whose parameters that start at 0 or 1 are moved from there.
fn model(parts: LehrParts) -> Model {
    let model = Model::new(Config::Lehr(config(parts)), 5).unwrap();
    for (i, param) in model.params().params().iter().enumerate() {
        let mut value = param.to_host().unwrap().duplicate().unwrap();
        let mut noise = vec![0.0; value.data().len()];
        Philox::new(9, i as u64).fill_normal(&mut noise, 0.3);
        if matches!(param.role(), Role::Gate | Role::BigramEmbedding | Role::Scalar) {
            value.data_mut().iter_mut().zip(noise).for_each(|(v, noise)| *v += noise);
            param.set(&value).unwrap();
        }
    }
    model
}

fn ids(n: usize, salt: usize) -> Vec<i32> {
    (0..n).map(|i| ((7 * i + 13 * salt + i * i) % VOCAB) as i32).collect()
}

fn targets(ids: &[i32], shape: [usize; 2]) -> Tensor {
    let row = |row: &[i32]| [&row[1..], &[-100]].concat();
    let targets: Vec<i32> = ids.chunks(shape[1]).flat_map(row).collect();
    Tensor::from_ids(&targets, shape).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The loss of two texts and all gradients, as bits.
fn step(model: &Model) -> (u32, Vec<Option<Vec<u32>>>) {
    let ids = ids(36, 1);
    model.params().clear_grads();
    let tokens = Tokens::new(&ids, 2, 0).unwrap();
    let loss = model.loss(&tokens, &targets(&ids, [2, 18]), 34.0).unwrap();
    let value = loss.item().unwrap().to_bits();
    loss.backward().unwrap();
    let params = model.params().params().iter();
    (value, params.map(|p| p.grad().map(|g| bits(g.data()))).collect())
}

#[test]
fn without_parts_it_is_a_llama_bit_for_bit() {
    let own = config(LehrParts::default());
    let llama = LlamaConfig {
        vocab_size: own.vocab_size,
        hidden_size: own.hidden_size,
        intermediate_size: own.intermediate_size,
        num_hidden_layers: own.num_hidden_layers,
        num_attention_heads: own.num_attention_heads,
        num_key_value_heads: Some(own.num_key_value_heads),
        max_position_embeddings: own.max_position_embeddings,
        rms_norm_eps: own.rms_norm_eps,
        initializer_range: own.initializer_range,
        tie_word_embeddings: own.tie_word_embeddings,
        rope: own.rope.clone(),
        ..LlamaConfig::default()
    };
    let own = Model::new(Config::Lehr(own), 5).unwrap();
    let llama = Model::new(Config::Llama(llama), 5).unwrap();
    let values = |model: &Model| -> Vec<_> {
        let params = model.params().params().iter();
        params.map(|p| (p.name().to_owned(), p.role(), bits(&p.tensor().to_vec()))).collect()
    };
    assert_eq!(values(&own), values(&llama));
    assert!(step(&own) == step(&llama), "loss or gradients differ");
    let decode = |model: &Model| {
        let mut cache = model.cache(1, 12).unwrap();
        let ids = ids(12, 2);
        model.next_logits(&Tokens::new(&ids[..9], 1, 0).unwrap(), &mut cache).unwrap();
        let next = Tokens::new(&ids[9..10], 1, 9).unwrap();
        bits(model.next_logits(&next, &mut cache).unwrap().data())
    };
    assert_eq!(decode(&own), decode(&llama));
}

#[test]
fn every_part_changes_the_result_and_has_its_roles() {
    let logits = |model: &Model| {
        let tokens = Tokens::new(&ids(18, 3), 1, 0).unwrap();
        no_grad(|| model.logits(&model.hidden(&tokens).unwrap())).unwrap().to_vec()
    };
    let plain = model(LehrParts::default());
    let (want, names) = (logits(&plain), plain.params().params().len());
    for (name, parts) in parts() {
        let model = model(parts);
        // Scales that are 1 are as good as none.
        assert_eq!(logits(&model) != want, name != "norm_weights", "{name}");
        let of = |role| model.params().params().iter().filter(|p| p.role() == role).count();
        let roles = [
            Role::ResidualScale,
            Role::Scalar,
            Role::ValueEmbedding,
            Role::BigramEmbedding,
            Role::Gate,
        ];
        // Of three blocks the first and the last have value embeddings.
        let wanted = match name {
            "residual_scalars" => [3, 0, 0, 0, 0],
            "x0_scalars" => [0, 3, 0, 0, 0],
            "value_embeddings" => [0, 0, 2, 0, 2],
            "bigram_rows" => [0, 3, 0, 1, 0],
            "smear" => [0, 1, 0, 0, 1],
            "backout" => [0, 1, 0, 0, 0],
            _ => [0; 5],
        };
        assert_eq!(roles.map(of), wanted, "{name}");
        let n = model.params().params().len();
        match name {
            "mlp" => assert_eq!(n, names - 3, "no gates"),
            "norm_weights" => assert_eq!(n, names - 7, "no scales"),
            _ => assert_eq!(n, names + wanted.iter().sum::<usize>(), "{name}"),
        }
    }
}

#[test]
fn outputs_start_at_zero_if_asked() {
    let zero = config(LehrParts { zero_init_outputs: true, ..LehrParts::default() });
    let model = Model::new(Config::Lehr(zero), 5).unwrap();
    for param in model.params().params() {
        let is_out =
            ["o_proj.weight", "down_proj.weight"].iter().any(|n| param.name().ends_with(n));
        let is_zero = param.tensor().to_vec().iter().all(|x| x.to_bits() == 0);
        assert_eq!(is_out, is_zero, "{}", param.name());
    }
}

/// Along the gradient the loss grows by the square of its norm.
#[test]
fn gradients_of_every_part_match_finite_differences() {
    let text = ids(36, 4);
    let (tokens, targets) = (Tokens::new(&text, 2, 0).unwrap(), targets(&text, [2, 18]));
    let loss = |model: &Model| {
        let loss = no_grad(|| model.loss(&tokens, &targets, 1.0)).unwrap();
        f64::from(loss.item().unwrap())
    };
    for (name, parts) in parts() {
        let model = model(parts);
        model.loss(&tokens, &targets, 1.0).unwrap().backward().unwrap();
        let square = |x: f32| f64::from(x).powi(2);
        for role in Role::ALL {
            let params = model.params().params().iter().filter(|p| p.role() == role);
            let params: Vec<_> = params.map(|p| (p, p.to_host().unwrap(), p.grad())).collect();
            let grads = params.iter().filter_map(|(.., grad)| grad.as_ref());
            let norm: f64 = grads.flat_map(|g| g.data()).map(|x| square(*x)).sum();
            if params.is_empty() {
                continue;
            }
            assert!(norm > 0.0, "{name}: no gradient of {role}");
            // So far that the loss, of order 150, changes by a thousandth of it, but not so far
            // that it bends.
            let step = (0.15 / norm).min(0.05 / norm.sqrt()) as f32;
            let at = |step: f32| {
                for (param, value, grad) in &params {
                    let mut moved = value.duplicate().unwrap();
                    let grad = grad.as_ref().unwrap();
                    let pairs = moved.data_mut().iter_mut().zip(grad.data());
                    pairs.for_each(|(x, g)| *x += step * g);
                    param.set(&moved).unwrap();
                }
                loss(&model)
            };
            let slope = (at(step) - at(-step)) / (2.0 * f64::from(step));
            at(0.0);
            let error = (slope / norm - 1.0).abs();
            assert!(error < 2e-2, "{name}: the gradient of {role} is off by {error:.1e}");
        }
    }
}

#[test]
fn recomputed_activations_change_no_bit_of_any_part() {
    let mut all = parts();
    all.push(("no part", LehrParts::default()));
    for (name, parts) in all {
        let mut model = model(parts);
        let kept = step(&model);
        model.set_activation_checkpointing(ActivationCheckpointing::Recompute);
        assert!(kept == step(&model), "{name}");
    }
}

fn is_near(found: &[f32], want: &[f32]) -> bool {
    found.len() == want.len() && found.iter().zip(want).all(|(a, b)| (a - b).abs() < 2e-4)
}

/// Logits after each token of whole texts `[B, T]`.
fn whole(model: &Model, ids: &[i32], batch: usize) -> Vec<f32> {
    let tokens = Tokens::new(ids, batch, 0).unwrap();
    no_grad(|| model.logits(&model.hidden(&tokens).unwrap())).unwrap().to_vec()
}

#[test]
fn decoding_with_a_cache_is_the_whole_forward_pass_wherever_the_prompt_ends() {
    let (batch, len) = (2, 12);
    let ids = ids(batch * len, 5);
    // Tokens `from..to` of both texts.
    let part = |from: usize, to: usize| -> Vec<i32> {
        ids.chunks(len).flat_map(|text| text[from..to].to_vec()).collect()
    };
    for (name, parts) in parts() {
        let model = model(parts);
        let whole = whole(&model, &ids, batch);
        for prompt in 1..len {
            for chunk in [1, 3] {
                let mut cache = model.cache(batch, len).unwrap();
                let (mut from, mut to) = (0, prompt);
                while from < to {
                    let tokens = Tokens::new(&part(from, to), batch, from).unwrap();
                    let logits = model.next_logits(&tokens, &mut cache).unwrap();
                    for row in 0..batch {
                        let want = &whole[(row * len + to - 1) * VOCAB..][..VOCAB];
                        let found = &logits.data()[row * VOCAB..][..VOCAB];
                        assert!(is_near(found, want), "{name}: row {row}, {from}..{to}");
                    }
                    (from, to) = (to, len.min(to + chunk));
                }
            }
        }
    }
}

#[test]
fn texts_in_pages_go_on_as_if_they_were_alone() {
    for (name, parts) in parts() {
        let model = model(parts);
        let size = PagedSize { max_sequences: 3, context: 40, max_pages: 9, reuse_prefixes: true };
        let mut cache = PagedCache::new(&model, size).unwrap();
        let last = |ids: &[i32]| {
            let all = whole(&model, ids, 1);
            all[all.len() - VOCAB..].to_vec()
        };
        let read = |cache: &mut PagedCache, ids: &[i32], chunk: usize| {
            let row = cache.begin(ids, Layout::causal(ids.len())).unwrap();
            let mut logits = None;
            while cache.len(row).unwrap() < ids.len() {
                let new = &ids[cache.len(row).unwrap()..];
                let n = new.len().min(chunk);
                logits = cache.prefill(&model, row, &new[..n], n == new.len()).unwrap();
            }
            assert!(is_near(logits.unwrap().data(), &last(ids)), "{name}: prompt of row {row}");
            row
        };
        let mut texts = [ids(17, 6), ids(3, 7), ids(20, 8)];
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(read(&mut cache, text, [7, 1, 16][i]), i);
        }
        for turn in 0..4 {
            if turn == 2 {
                // The second text begins with two pages that the third has filled.
                cache.end(1);
                texts[1] = [&texts[2][..18], &[4, 5]].concat();
                assert_eq!(read(&mut cache, &texts[1], 2), 1);
            }
            let rows = if turn == 1 { vec![2, 0] } else { vec![1, 2, 0] };
            let next: Vec<_> = rows.iter().map(|row| (*row, (11 + turn + *row) as i32)).collect();
            let logits = cache.next_logits(&model, &next).unwrap();
            for ((row, id), found) in next.iter().zip(logits.data().chunks(VOCAB)) {
                texts[*row].push(*id);
                assert!(is_near(found, &last(&texts[*row])), "{name}: turn {turn}, row {row}");
            }
        }
    }
}

#[test]
fn packed_texts_do_not_see_each_other() {
    let texts = [ids(7, 1), ids(9, 2)];
    let layouts = [7, 9].map(Layout::causal);
    let place = |i: usize| PackedText { ids: &texts[i], layout: &layouts[i], row: 0, start: 7 * i };
    let packed = Tokens::pack(&[place(0), place(1)], 1, 16).unwrap();
    for (name, parts) in parts() {
        let model = model(parts);
        let found = no_grad(|| model.logits(&model.hidden(&packed).unwrap())).unwrap().to_vec();
        let want = [whole(&model, &texts[0], 1), whole(&model, &texts[1], 1)].concat();
        assert!(is_near(&found, &want), "{name}");
    }
}

/// Only the last token of a cache is known to models that read the previous one.
#[test]
fn a_shortened_cache_keeps_nothing_it_cannot_continue() {
    for (name, parts) in parts() {
        let model = model(parts);
        let mut cache = model.cache(1, 12).unwrap();
        let text = ids(8, 3);
        model.next_logits(&Tokens::new(&text, 1, 0).unwrap(), &mut cache).unwrap();
        assert_eq!(cache.truncate(8), 8, "{name}");
        let n = cache.truncate(5);
        let reads = ["bigram_rows", "smear", "key_offset"].contains(&name);
        assert_eq!(n, if reads { 0 } else { 5 }, "{name}");
        let next = Tokens::new(&text[n..], 1, n).unwrap();
        let logits = model.next_logits(&next, &mut cache).unwrap();
        let want = whole(&model, &text, 1);
        assert!(is_near(logits.data(), &want[want.len() - VOCAB..]), "{name}");
    }
}

#[test]
fn the_configuration_is_kept_and_faults_are_named() {
    let mut on = config(LehrParts { bigram_rows: 12, ..LehrParts::default() });
    on.embedding_initializer_range = Some(0.5);
    let json = Config::Lehr(on.clone()).to_json();
    assert_eq!(Config::from_json(&json).unwrap(), Config::Lehr(on));
    assert!(Config::unread_keys(&json).is_empty(), "{:?}", Config::unread_keys(&json));
    for (key, value, says) in [
        ("lehr_version", 2.into(), "lehr_version is 2, expected 1"),
        ("bigram_rows", 1.into(), "at least 2"),
        ("qk_norm_gain", (-1).into(), "a positive number"),
        ("final_logit_softcapping", 0.into(), "a positive number"),
        ("mlp", "gelu".into(), "gelu"),
    ] {
        let mut json = json.clone();
        json[key] = value;
        let error = Config::from_json(&json).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let gates = LehrParts { smear: true, ..LehrParts::default() };
    let narrow = LehrConfig { hidden_size: 8, ..config(gates) };
    assert!(narrow_error(narrow).contains("at least 12"));
    let odd = LehrParts { key_offset: true, ..LehrParts::default() };
    let odd = LehrConfig { hidden_size: 24, ..config(odd) };
    assert!(narrow_error(odd).contains("multiple of 4"));
}

fn narrow_error(config: LehrConfig) -> String {
    Model::new(Config::Lehr(config), 1).err().unwrap().to_string()
}

#[test]
fn gguf_refuses_the_family_by_name_and_says_what_to_train_instead() {
    let scratch = tempfile::tempdir().unwrap();
    let options = GgufOptions {
        name: "x",
        file_type: FileType::F16,
        tokenizer: Metadata::default(),
        more: Metadata::default(),
    };
    let path = scratch.path().join("x.gguf");
    let error = model(LehrParts::default()).save_gguf(&path, &options).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("model_type is lehr"), "{error}");
    assert!(error.hint().unwrap().contains("model.kind = \"llama\""), "{error}");
    assert!(!path.exists());
}
