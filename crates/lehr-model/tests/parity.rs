//! Every family against its reference implementation: logits, loss, every gradient.
//!
//! `tests/golden/<case>` holds tiny models with random weights and what Hugging Face transformers,
//! or the code published with the model, computed with them; `tools/golden/README.md` says how.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lehr_model::arch::Pass;
use lehr_model::io::{Checkpoint, read_json};
use lehr_model::nn::LayerBuilder;
use lehr_model::{ActivationCheckpointing, Config, Error, Model, PackedText, Role, Tokens};
use lehr_tensor::{NamePattern, Param, ParamStore, Source, Tensor, no_grad};

fn golden_dirs() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    assert!(dirs.len() >= 16, "goldens are missing");
    dirs
}

#[test]
fn every_family_has_a_golden() {
    let family = |dir: &PathBuf| Model::load(dir).unwrap().config().family();
    let found: BTreeSet<_> = golden_dirs().iter().map(family).collect();
    let known: BTreeSet<_> = Config::FAMILIES.iter().copied().collect();
    assert_eq!(found, known);
}

fn golden(dir: &Path) -> (Model, Checkpoint, Tokens) {
    let golden = Checkpoint::open(&dir.join("golden.safetensors")).unwrap();
    let ids = golden.ids("input_ids").unwrap();
    let model = Model::load(dir).unwrap();
    let tokens = model.tokens(ids.ids(), ids.shape()[0]).unwrap();
    (model, golden, tokens)
}

fn max_abs_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| f32::max(m, (a - b).abs()))
}

/// Returns labels at the positions that predict them: one before for a decoder, their own for an
/// encoder.
fn targets(model: &Model, labels: &Tensor) -> Tensor {
    if !model.is_causal() {
        return labels.clone();
    }
    let t = labels.shape()[1];
    let shift = |row: &[i32]| row[1..].iter().copied().chain([-100]).collect::<Vec<_>>();
    let shifted: Vec<i32> = labels.ids().chunks(t).flat_map(shift).collect();
    Tensor::from_ids(&shifted, labels.shape()).unwrap()
}

#[test]
fn logits_match_the_reference() {
    for dir in golden_dirs() {
        let (model, golden, tokens) = golden(&dir);
        let logits = no_grad(|| model.logits(&model.hidden(&tokens).unwrap()).unwrap());
        let want = golden.tensor("logits", logits.shape()).unwrap();
        let error = max_abs_difference(logits.data(), want.data());
        assert!(error <= 5e-5, "{}: logits are off by {error}", dir.display());
    }
}

#[test]
fn loss_and_every_gradient_match_the_reference() {
    for dir in golden_dirs() {
        let (model, golden, tokens) = golden(&dir);
        let targets = targets(&model, &golden.ids("labels").unwrap());
        let n_labels = targets.ids().iter().filter(|l| **l >= 0).count();
        let loss = model.loss(&tokens, &targets, n_labels as f32).unwrap();
        let want = golden.tensor("loss", [].into()).unwrap().item().unwrap();
        let error = (loss.item().unwrap() - want).abs() / want;
        assert!(error <= 1e-6, "{}: the loss is off by {error}", dir.display());
        loss.backward().unwrap();
        let square = |x: f32| f64::from(x).powi(2);
        let names: Vec<_> = golden.names().filter_map(|n| n.strip_prefix("grad.")).collect();
        let reached = model.params().params().iter().filter(|param| param.grad().is_some());
        let reached: BTreeSet<_> = reached.map(Param::name).collect();
        assert_eq!(reached, names.iter().copied().collect(), "{}", dir.display());
        // The pooler of an encoder serves only classifiers.
        let rest = model.params().params().iter().filter(|param| param.grad().is_none());
        for param in rest {
            assert!(param.name().starts_with("bert.pooler."), "{}", param.name());
        }
        let wants = names.iter().map(|name| {
            let param = model.params().get(name).unwrap_or_else(|| panic!("no parameter {name}"));
            golden.tensor(&format!("grad.{name}"), param.shape()).unwrap()
        });
        let wants: Vec<_> = wants.collect();
        let all: f64 = wants.iter().flat_map(|w| w.data()).map(|x| square(*x)).sum();
        // Key biases cannot change a softmax: the reference's values for them are rounding.
        let smallest = 1e-10 * all;
        for (name, want) in names.into_iter().zip(wants) {
            let grad = model.params().get(name).unwrap().grad();
            let grad = grad.unwrap_or_else(|| panic!("no gradient for {name}"));
            let difference: f64 =
                grad.data().iter().zip(want.data()).map(|(a, b)| square(a - b)).sum();
            let norm: f64 = want.data().iter().map(|x| square(*x)).sum();
            let error = (difference / norm.max(smallest)).sqrt();
            assert!(error <= 1e-4, "{}: {name} is off by {error:.1e}", dir.display());
        }
    }
}

#[test]
fn activations_computed_again_change_no_bit() {
    for dir in golden_dirs() {
        let (mut model, golden, tokens) = golden(&dir);
        let targets = targets(&model, &golden.ids("labels").unwrap());
        // Texts so short that attention takes another path when it is not recorded.
        let short = ["llama", "gpt2"].iter().any(|name| dir.ends_with(name));
        let cut = |ids: &Tensor| Tensor::from_ids(&ids.ids()[..3], [1, 3]).unwrap();
        let mut cases = vec![(tokens.clone(), targets.clone())];
        if short {
            cases.push((Tokens::new(&tokens.ids.ids()[..3], 1, 0).unwrap(), cut(&targets)));
        }
        let mut run = |checkpointing, (tokens, targets): &(Tokens, Tensor)| {
            model.set_activation_checkpointing(checkpointing);
            model.params().clear_grads();
            let loss = model.loss(tokens, targets, 8.0).unwrap();
            let value = loss.item().unwrap();
            loss.backward().unwrap();
            let params = model.params().params().iter();
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let grads: Vec<_> = params.map(|p| p.grad().map(|g| bits(g.data()))).collect();
            (value.to_bits(), grads)
        };
        for case in &cases {
            let kept = run(ActivationCheckpointing::None, case);
            let again = run(ActivationCheckpointing::Recompute, case);
            assert!(kept == again, "{}", dir.display());
        }
    }
}

/// Frozen parameters have no gradient, the others the same gradient as when all are trained. If
/// nothing is trained, nothing is recorded.
#[test]
fn freezing_changes_no_other_gradient() {
    for dir in golden_dirs() {
        let (mut model, golden, tokens) = golden(&dir);
        let targets = targets(&model, &golden.ids("labels").unwrap());
        let grads = |model: &mut Model, checkpointing| -> Vec<Option<Vec<f32>>> {
            model.set_activation_checkpointing(checkpointing);
            model.params().clear_grads();
            model.loss(&tokens, &targets, 8.0).unwrap().backward().unwrap();
            let params = model.params().params().iter();
            params.map(|param| param.grad().map(|grad| grad.to_vec())).collect()
        };
        let all = grads(&mut model, ActivationCheckpointing::None);
        let n_frozen = model.params().freeze(|param| param.role() != Role::Mlp);
        assert!(n_frozen > 5 && n_frozen < all.len(), "{}", dir.display());
        for checkpointing in [ActivationCheckpointing::None, ActivationCheckpointing::Recompute] {
            let some = grads(&mut model, checkpointing);
            for ((param, all), some) in model.params().params().iter().zip(&all).zip(&some) {
                let wanted = all.as_ref().filter(|_| param.is_trainable());
                assert_eq!(some.is_some(), wanted.is_some(), "{}", param.name());
                if let (Some(a), Some(b)) = (some, wanted) {
                    let scale = b.iter().fold(1e-3, |m: f32, x| m.max(x.abs()));
                    assert!(max_abs_difference(a, b) <= 1e-5 * scale, "{}", param.name());
                }
            }
        }
        model.params().freeze(|_| true);
        for checkpointing in [ActivationCheckpointing::None, ActivationCheckpointing::Recompute] {
            model.set_activation_checkpointing(checkpointing);
            assert!(!model.loss(&tokens, &targets, 8.0).unwrap().wants_grad());
        }
    }
}

#[test]
fn patterns_freeze_what_they_name_or_are_refused() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let (model, ..) = golden(&root.join("llama-yarn-biases"));
    let freeze = |patterns: &[&str]| {
        let patterns: Vec<_> = patterns.iter().map(|p| NamePattern::new(*p)).collect();
        model.params().freeze_matching(&patterns)
    };
    let error = freeze(&["*.bias", "*.no_such"]).unwrap_err();
    assert!(error.to_string().contains("`*.no_such`"), "{error}");
    assert_eq!(model.params().trainable().count(), model.params().params().len());
    let n = freeze(&["*.layers.0.*", "*.layers.1.*", "*norm*"]).unwrap();
    assert_eq!(model.params().trainable().count(), model.params().params().len() - n);
    for param in model.params().params() {
        let name = param.name();
        let frozen = [".layers.0.", ".layers.1.", "norm"].iter().any(|part| name.contains(part));
        assert_eq!(param.is_trainable(), !frozen, "{name}");
    }
}

#[test]
fn hidden_states_of_encoders_match_the_reference() {
    let mut n_encoders = 0;
    for dir in golden_dirs() {
        let (model, golden, tokens) = golden(&dir);
        if model.is_causal() {
            continue;
        }
        n_encoders += 1;
        let hidden = no_grad(|| model.hidden(&tokens).unwrap());
        let want = golden.tensor("hidden", hidden.shape()).unwrap();
        let error = max_abs_difference(hidden.data(), want.data());
        assert!(error <= 2e-5, "{}: hidden states are off by {error}", dir.display());
    }
    assert!(n_encoders >= 1);
}

#[test]
fn a_pass_with_a_cache_is_not_recorded_by_mistake() {
    let mut n_causal = 0;
    for dir in golden_dirs() {
        let (model, _, tokens) = golden(&dir);
        if !model.is_causal() {
            continue;
        }
        n_causal += 1;
        let config = Config::from_json(&read_json(&dir.join("config.json")).unwrap()).unwrap();
        let mut store = ParamStore::default();
        let source = Source::Init { seed: 1 };
        let arch = config.build(&mut LayerBuilder::new(&mut store, &source)).unwrap();
        let mut cache = model.cache(tokens.batch(), tokens.len()).unwrap();
        let error = arch.forward(Pass::continuing(&tokens, &mut cache)).unwrap_err();
        assert!(matches!(error, Error::RecordedCache), "{error}");
        assert!(cache.is_empty());
        let hidden = model.hidden_cached(&tokens, &mut cache).unwrap();
        assert!(!hidden.wants_grad() && cache.len() == tokens.len());
        assert!(model.hidden(&tokens).unwrap().wants_grad());
    }
    assert!(n_causal >= 15);
}

#[test]
fn encoders_refuse_to_continue_a_text() {
    let mut n_encoders = 0;
    for dir in golden_dirs() {
        let (model, _, tokens) = golden(&dir);
        if model.is_causal() {
            continue;
        }
        n_encoders += 1;
        let mut cache = model.cache(tokens.batch(), tokens.len()).unwrap();
        let error = model.next_logits(&tokens, &mut cache).unwrap_err();
        assert!(error.to_string().contains("encoder (BertForMaskedLM)"), "{error}");
        assert!(error.hint().unwrap().contains("lehr embed"));
        assert!(model.hidden_cached(&tokens, &mut cache).is_err());
        assert!(cache.is_empty());
    }
    assert!(n_encoders >= 1);
}

/// Goldens without a generated text: an encoder, and published code with its own sampler.
const WITHOUT_GREEDY: [&str; 3] = ["bert", "chatglm-6b", "chatglm2-6b"];

#[test]
fn cached_generation_gives_the_greedy_tokens_of_the_reference() {
    let mut without = Vec::new();
    for dir in golden_dirs() {
        let (model, golden, _) = golden(&dir);
        if !golden.has("greedy") {
            without.push(dir.file_name().unwrap().to_string_lossy().into_owned());
            continue;
        }
        let want = golden.ids("greedy").unwrap();
        let (prompt, expected) = want.ids().split_at(10);
        let mut cache = model.cache(1, want.ids().len()).unwrap();
        let layout = model.layout(prompt).unwrap();
        let mut next = Tokens::of_texts(prompt, &[&layout], 0).unwrap();
        for (i, expected) in expected.iter().enumerate() {
            let logits = model.next_logits(&next, &mut cache).unwrap();
            let full = no_grad(|| {
                let all = model.tokens(&want.ids()[..10 + i], 1).unwrap();
                model.logits(&model.hidden(&all).unwrap()).unwrap()
            });
            let last = &full.data()[full.data().len() - logits.data().len()..];
            let error = max_abs_difference(logits.data(), last);
            assert!(error <= 2e-5, "{}: cached is off full by {error}", dir.display());
            let by_value = |a: &usize, b: &usize| logits.data()[*a].total_cmp(&logits.data()[*b]);
            let best = (0..logits.data().len()).max_by(by_value).unwrap() as i32;
            assert_eq!(best, *expected, "{} at token {i}", dir.display());
            next = Tokens::of_texts(&[best], &[&layout], 10 + i).unwrap();
        }
    }
    assert_eq!(without, WITHOUT_GREEDY);
}

#[test]
fn what_the_cache_holds_gives_the_logits_of_the_whole() {
    let mut n_causal = 0;
    for dir in golden_dirs() {
        let (model, golden, tokens) = golden(&dir);
        if !model.is_causal() {
            continue;
        }
        n_causal += 1;
        let t = tokens.len();
        let whole = no_grad(|| model.logits(&model.hidden(&tokens).unwrap()).unwrap());
        let ids = golden.ids("input_ids").unwrap();
        for (row, ids) in ids.ids().chunks(t).enumerate() {
            let layout = model.layout(ids).unwrap();
            let prompt = layout.prefix_len.max(10);
            let mut cache = model.cache(1, t).unwrap();
            let mut next = Tokens::of_texts(&ids[..prompt], &[&layout], 0).unwrap();
            // Two tokens at a time at the end, to have more than one new token.
            for end in (prompt..t - 4).chain((t - 4..t).step_by(2)) {
                let logits = model.next_logits(&next, &mut cache).unwrap();
                let v = logits.data().len();
                let want = &whole.data()[(row * t + cache.len() - 1) * v..][..v];
                let error = max_abs_difference(logits.data(), want);
                assert!(error <= 2e-5, "{}: cached is off full by {error}", dir.display());
                let step = if end < t - 4 { 1 } else { 2 };
                next = Tokens::of_texts(&ids[end..end + step], &[&layout], end).unwrap();
            }
        }
    }
    assert!(n_causal >= 15);
}

#[test]
fn positions_and_masks_match_the_reference() {
    let mut n_with_prefix = 0;
    for dir in golden_dirs() {
        let (_, golden, tokens) = golden(&dir);
        let (b, t) = (tokens.batch(), tokens.len());
        assert_eq!(tokens.prefix_lens.is_some(), golden.has("position_ids"), "{}", dir.display());
        if tokens.prefix_lens.is_none() {
            continue;
        }
        n_with_prefix += 1;
        let streams = [Some(&tokens.positions), tokens.block_positions.as_ref()];
        let streams: Vec<_> = streams.into_iter().flatten().map(Tensor::ids).collect();
        let want = golden.ids("position_ids").unwrap();
        let n_streams = streams.len();
        assert_eq!(*want.shape(), [b, n_streams, t]);
        for (i, want) in want.ids().chunks(t).enumerate() {
            let (row, stream) = (i / n_streams, i % n_streams);
            let got = &streams[stream][row * t..(row + 1) * t];
            assert_eq!(got, want, "{} row {row} stream {stream}", dir.display());
        }
        let intervals = tokens.causal_mask().intervals(b, t, t).unwrap();
        let blocked = golden.ids("attention_blocked").unwrap();
        for (i, want) in blocked.ids().iter().enumerate() {
            let (query, key) = (i / t, (i % t) as i32);
            let (lo, hi) = (intervals.ids()[2 * query], intervals.ids()[2 * query + 1]);
            assert_eq!(i32::from(key < lo || key >= hi), *want, "{} {query}", dir.display());
        }
    }
    assert!(n_with_prefix >= 2);
}

#[test]
fn packed_sequences_equal_separate_ones() {
    for dir in golden_dirs() {
        let (model, golden, _) = golden(&dir);
        let ids = golden.ids("input_ids").unwrap();
        let t = ids.shape()[1];
        // Of two rows, because a text may need tokens that lay it out.
        let (a, b) = (&ids.ids()[..16], &ids.ids()[t..t + 14]);
        let layouts = [a, b].map(|ids| model.layout(ids).unwrap());
        let place = |ids, i: usize| PackedText { ids, layout: &layouts[i], row: 0, start: 16 * i };
        let packed = Tokens::pack(&[place(a, 0), place(b, 1)], 1, 30).unwrap();
        let hidden = |tokens: &Tokens| no_grad(|| model.hidden(tokens).unwrap().to_vec());
        let mut separate = hidden(&model.tokens(a, 1).unwrap());
        separate.extend(hidden(&model.tokens(b, 1).unwrap()));
        let error = max_abs_difference(&hidden(&packed), &separate);
        assert!(error <= 1e-5, "{}: packed is off by {error}", dir.display());
    }
}

#[test]
fn a_saved_model_loads_to_the_same_bits() {
    let scratch = tempfile::tempdir().unwrap();
    for dir in golden_dirs() {
        let model = Model::load(&dir).unwrap();
        let copy_dir = scratch.path().join(dir.file_name().unwrap());
        model.save(&copy_dir).unwrap();
        let copy = Model::load(&copy_dir).unwrap();
        assert_eq!(copy.config(), model.config());
        for (a, b) in model.params().params().iter().zip(copy.params().params()) {
            assert_eq!((a.name(), a.tensor().to_vec()), (b.name(), b.tensor().to_vec()));
        }
    }
}

#[test]
fn damaged_folders_give_errors_that_name_the_fault() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let says = |text: &str| {
        let error = Model::load(dir).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(text), "{error:?} does not say {text:?}");
    };
    says("config.json");
    let mut config = Model::load(&llama).unwrap().config().to_json();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    says("found neither model.safetensors");
    let whole = std::fs::read(llama.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    says("not a whole safetensors file");
    std::fs::write(dir.join("model.safetensors"), &whole).unwrap();
    assert!(Model::load(dir).is_ok());
    config["intermediate_size"] = 96.into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    says("gate_proj.weight");
    config["num_key_value_heads"] = 3.into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    says("num_key_value_heads is 3");
    config["model_type"] = "unheard_of".into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    assert!(Config::from_json(&config).unwrap_err().to_string().contains("unheard_of"));
    says("one of gpt2, llama");
}
