use super::*;
use lehr_model::{DTypeChoice, DeviceChoice};

fn example() -> Recipe {
    let base = Recipe::base();
    Recipe {
        run: RunConfig { device: DeviceChoice::Cpu, dtype: DTypeChoice::F32, ..base.run },
        data: DataConfig { path: "a.txt".into(), ..base.data },
        tokenizer: TokenizerConfig::Train { vocab_size: 512, pattern: "gpt4".into() },
        model: ModelConfig::Gpt2 {
            n_layers: 2,
            hidden_size: 32,
            n_heads: 2,
            context: 64,
            init_std: 0.02,
        },
        schedule: ScheduleConfig::Cosine { warmup_steps: 2, min_ratio: 0.1 },
        train: TrainConfig { steps: 10, batch_size: 2, seq_len: 64, ..base.train },
        sample: SampleConfig { prompts: vec!["The".into()], ..base.sample },
        ..base
    }
}

#[test]
fn a_recipe_written_and_read_is_the_same() {
    let recipe = example();
    assert_eq!(Recipe::parse(&recipe.to_toml(), "test", &[]).unwrap(), recipe);
}

/// The tables of `recipe` without the keys that `base.toml` has with the same value.
fn shortened(recipe: &Recipe) -> toml::Table {
    let mut table: toml::Table = toml::from_str(&recipe.to_toml()).unwrap();
    for (section, values) in &mut table {
        let base = base_table();
        let (values, base) = (values.as_table_mut().unwrap(), base[section].as_table().unwrap());
        if values.get("kind") == base.get("kind") {
            values.retain(|key, value| key == "kind" || base.get(key) != Some(value));
        }
    }
    table
}

#[test]
fn keys_that_a_file_leaves_out_have_the_values_of_the_base_recipe() {
    let mut recipe = example();
    // A key that defines a run is given even where it has the placeholder's value.
    recipe.run.dir = "runs/x".to_owned();
    (recipe.optimizer.lr, recipe.train.batch_size, recipe.train.seq_len) = (0.5, 3, 32);
    let short = shortened(&recipe);
    let text = toml::to_string(&short).unwrap();
    assert!(text.len() < recipe.to_toml().len() * 2 / 3, "{text}");
    assert_eq!(Recipe::parse(&text, "short", &[]).unwrap(), recipe);
    let sets = ["optimizer.beta1=0.5".to_owned()];
    assert_eq!(
        Recipe::parse(&text, "short", &sets).unwrap(),
        recipe.with_overrides(&sets).unwrap()
    );
    let mut without_eval = short;
    without_eval.remove("eval");
    let text = toml::to_string(&without_eval).unwrap();
    assert_eq!(Recipe::parse(&text, "short", &[]).unwrap().eval, Recipe::base().eval);
}

#[test]
fn keys_that_define_a_run_are_named_when_they_are_missing() {
    let full: toml::Table = toml::from_str(&example().to_toml()).unwrap();
    for key in merge::DEFINING.iter().filter(|key| **key != "model.path") {
        let (section, key) = key.split_once('.').unwrap();
        let mut table = full.clone();
        table[section].as_table_mut().unwrap().remove(key);
        let text = toml::to_string(&table).unwrap();
        let error = Recipe::parse(&text, "t", &[]).unwrap_err().to_string();
        assert!(error.contains(&format!("missing field `{key}`")), "{error}");
    }
    for section in ["tokenizer", "model", "objective", "optimizer", "schedule"] {
        let mut table = full.clone();
        table.remove(section);
        let text = toml::to_string(&table).unwrap();
        let error = Recipe::parse(&text, "t", &[]).unwrap_err().to_string();
        assert!(error.contains(&format!("missing field `{section}`")), "{error}");
    }
}

#[test]
fn overrides_change_numbers_texts_and_kinds() {
    let sets =
        ["optimizer.lr=1", "run.dir=runs/y", "train.steps=7", "sample.prompts=[\"a\", \"b\"]"];
    let sets: Vec<_> = sets.iter().map(|s| (*s).to_owned()).collect();
    let recipe = example().with_overrides(&sets).unwrap();
    assert_eq!(
        (recipe.optimizer.lr, recipe.run.dir.as_str(), recipe.train.steps),
        (1.0, "runs/y", 7)
    );
    assert_eq!(recipe.sample.prompts, ["a", "b"]);
}

#[test]
fn a_changed_kind_leaves_the_settings_of_the_old_one_behind() {
    let with = |sets: &[&str]| {
        let sets: Vec<_> = sets.iter().map(|s| (*s).to_owned()).collect();
        example().with_overrides(&sets)
    };
    let path = "tokenizer.path=tokenizer.json";
    let recipe = with(&["tokenizer.kind=file", path]).unwrap();
    assert_eq!(recipe.tokenizer, TokenizerConfig::File { path: "tokenizer.json".to_owned() });
    let missing = with(&["tokenizer.kind=file"]).unwrap_err().to_string();
    assert!(missing.contains("path"), "{missing}");
    let typed = with(&["tokenizer.kind=file", path, "tokenizer.vocab_size=9"]).unwrap_err();
    assert!(typed.to_string().contains("vocab_size"), "{typed}");
}

#[test]
fn a_misspelt_key_is_an_error_with_a_suggestion() {
    let error = example().with_overrides(&["optimizer.wieght_decay=0.2".into()]).unwrap_err();
    assert!(error.to_string().contains("wieght_decay"), "{error}");
    assert_eq!(error.hint().unwrap(), "did you mean `weight_decay`?");
    // Also one of the keys that every optimiser has.
    let error = example().with_overrides(&["optimizer.clip_nrom=0.2".into()]).unwrap_err();
    assert_eq!(error.hint().unwrap(), "did you mean `clip_norm`?");
    let error = example().with_overrides(&["trian.steps=2".into()]).unwrap_err();
    assert_eq!(error.hint().unwrap(), "did you mean `train`?");
}

#[test]
fn all_impossible_settings_are_reported_at_once() {
    let sets = ["train.batch_size=0", "optimizer.beta2=1.5", "train.seq_len=100"];
    let sets: Vec<_> = sets.iter().map(|s| (*s).to_owned()).collect();
    let text = example().with_overrides(&sets).unwrap_err().to_string();
    for part in ["train.batch_size is 0", "optimizer.beta2 is 1.5", "train.seq_len is 100"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn missing_sections_and_broken_files_are_errors() {
    assert!(Recipe::parse("[run]\ndir = \"x\"\nseed = 1\n", "t", &[]).is_err());
    assert!(Recipe::parse("not toml", "t", &[]).is_err());
    assert!(example().with_overrides(&["nonsense".into()]).is_err());
    let error = Recipe::load(Path::new("no/such.toml"), &[]).unwrap_err().to_string();
    assert!(error.contains("no/such.toml"), "{error}");
}

#[test]
fn keys_of_earlier_versions_are_refused_with_the_new_name() {
    for (old, new) in [
        ("train.rows=4", "train.rows is now called train.batch_size"),
        ("train.len=4", "train.len is now called train.seq_len"),
        ("train.accumulation=4", "train.accumulation is now called train.grad_accumulation"),
        ("train.activations=keep", "now called train.activation_checkpointing"),
    ] {
        let error = example().with_overrides(&[old.to_owned()]).unwrap_err();
        assert!(error.to_string().contains(new), "{old}: {error}");
        let hint = error.hint().unwrap();
        assert_eq!(hint.contains("\"none\""), old.contains("activations"), "{hint}");
    }
    let file = example().to_toml().replace("batch_size", "rows").replace("seq_len", "len");
    let error = Recipe::parse(&file, "old.toml", &[]).unwrap_err().to_string();
    assert!(error.contains("old.toml") && error.contains("batch_size; train.len"), "{error}");
}

#[test]
fn old_names_on_the_command_line_are_used_and_named() {
    let sets = ["train.rows=4", " train.len =8", "optimizer.lr=1e-3"].map(str::to_owned);
    let (sets, notes) = current_names(&sets);
    assert_eq!(sets, ["train.batch_size=4", "train.seq_len=8", "optimizer.lr=1e-3"]);
    assert_eq!(notes.len(), 2);
    assert!(notes[0].starts_with("train.rows is now called train.batch_size"), "{notes:?}");
}

#[test]
fn keys_of_kinds_that_have_none_are_unknown_and_not_dropped() {
    for set in ["objective.colour=1", "tokenizer.kind=model tokenizer.path=x"] {
        let sets = ["model.kind=load", "model.path=m"].into_iter().chain(set.split(' '));
        let sets: Vec<_> = sets.map(str::to_owned).collect();
        let error = example().with_overrides(&sets).unwrap_err().to_string();
        assert!(error.contains("unknown field") && error.contains("with kind ="), "{error}");
    }
    let file = example().to_toml().replace("[objective]", "[objective]\ncolour = 1");
    let error = Recipe::parse(&file, "my.toml", &[]).unwrap_err().to_string();
    assert!(error.contains("my.toml") && error.contains("`colour` in [objective]"), "{error}");
    // What an overridden kind leaves behind is no key of anybody.
    let sets = ["model.kind=load", "model.path=m", "tokenizer.kind=model"].map(str::to_owned);
    example().with_overrides(&sets).unwrap();
}

#[test]
fn a_new_head_is_for_classifiers_and_may_be_missing_in_old_recipes() {
    let sets = |new: &str| {
        let sets = ["model.kind=load", "model.path=m", "tokenizer.kind=model", new];
        sets.map(str::to_owned).to_vec()
    };
    let error = example().with_overrides(&sets("train.new_head=true")).unwrap_err().to_string();
    assert!(error.contains("train.new_head is true"), "{error}");
    let mut with = sets("objective.kind=classify");
    with.push("train.new_head=true".to_owned());
    assert!(example().with_overrides(&with).unwrap().train.new_head);
    let old = example().to_toml().replace("new_head = false\n", "");
    assert_eq!(Recipe::parse(&old, "old.toml", &[]).unwrap(), example());
}

#[test]
fn checkpoints_of_trained_weights_need_a_model_to_refer_to() {
    let trained = "checkpoint.weights=trained".to_owned();
    let error = example().with_overrides(std::slice::from_ref(&trained)).unwrap_err().to_string();
    assert!(error.contains("checkpoint.weights is trained"), "{error}");
    let loads = ["model.kind=load", "model.path=runs/base", "tokenizer.kind=model"];
    let sets: Vec<_> = loads.iter().map(|s| (*s).to_owned()).chain([trained]).collect();
    let recipe = example().with_overrides(&sets).unwrap();
    assert_eq!(recipe.checkpoint.weights, SavedWeights::Trained);
}

fn with(sets: &[&str]) -> Result<Recipe> {
    let sets: Vec<_> = sets.iter().map(|s| (*s).to_owned()).collect();
    example().with_overrides(&sets)
}

#[test]
fn muon_has_its_own_defaults_and_takes_no_number_of_adamw() {
    let recipe = with(&["optimizer.kind=muon", "optimizer.lr=0.03"]).unwrap();
    assert_eq!(recipe.optimizer, OptimizerConfig::muon(0.03));
    // AdamW's clip_norm and beta2 have the same names.
    assert_eq!(recipe.optimizer.clip_norm.to_bits(), 0.0f32.to_bits());
    let text = recipe.to_toml();
    assert!(text.contains("[optimizer.head]") && text.contains("momentum_warmup_steps"), "{text}");
    assert_eq!(Recipe::parse(&text, "test", &[]).unwrap(), recipe);
    // The rate of AdamW is none for Muon, nor the other way round.
    let error = with(&["optimizer.kind=muon"]).unwrap_err().to_string();
    assert!(error.contains("missing field `lr`"), "{error}");
    let error = recipe.with_overrides(&["optimizer.kind=adamw".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("missing field `lr`"), "{error}");
    let back = ["optimizer.kind=adamw", "optimizer.lr=0.001"].map(str::to_owned);
    assert_eq!(
        recipe.with_overrides(&back).unwrap().optimizer.clip_norm.to_bits(),
        2.0f32.to_bits()
    );
}

#[test]
fn a_file_with_muon_names_what_it_changes() {
    let muon = "[optimizer]\nkind = \"muon\"\nlr = 0.02\nevery = 2\n\n[optimizer.head]\nlr = 1\n\n";
    let text = example().to_toml();
    let start = text.find("[optimizer]").unwrap();
    let end = text.find("[schedule]").unwrap();
    let text = format!("{}{muon}{}", &text[..start], &text[end..]);
    let recipe = Recipe::parse(&text, "test", &[]).unwrap();
    let want = OptimizerConfig::muon(0.02).with_muon(|muon| {
        muon.every = 2;
        muon.head.lr = 1.0;
    });
    assert_eq!(recipe.optimizer, want);
}

#[test]
fn keys_that_the_chosen_optimiser_does_not_use_are_refused() {
    for (sets, part) in [
        (["optimizer.kind=muon", "optimizer.beta1=0.9"], "beta1"),
        (["optimizer.kind=muon", "optimizer.embedding_lr_ratio=2.0"], "embedding_lr_ratio"),
        (["optimizer.kind=muon", "optimizer.matrices.lr=0.1"], "matrices"),
        (["optimizer.kind=muon", "optimizer.head.eps=0.1"], "eps"),
        (["optimizer.momentum=0.9", "train.steps=9"], "momentum"),
        (["optimizer.head.momentum=0.9", "train.steps=9"], "momentum"),
    ] {
        let error = with(&[&sets[..], &["optimizer.lr=0.02"]].concat()).unwrap_err().to_string();
        assert!(error.contains("unknown field") && error.contains(part), "{error}");
    }
}

#[test]
fn impossible_numbers_of_groups_and_of_muon_are_named() {
    let error = with(&[
        "optimizer.kind=muon",
        "optimizer.lr=0.02",
        "optimizer.momentum_start=1.0",
        "optimizer.every=0",
        "optimizer.others.beta2=1.5",
        "optimizer.embeddings.lr=-1.0",
    ]);
    let text = error.unwrap_err().to_string();
    for key in ["momentum_start is 1", "every is 0", "others.beta2 is 1.5", "embeddings.lr is -1"] {
        assert!(text.contains(&format!("optimizer.{key}")), "{text}");
    }
    let error = with(&["optimizer.kind=muon", "optimizer.lr=0.0"]).unwrap_err().to_string();
    assert!(error.contains("optimizer.lr is 0, expected more than 0"), "{error}");
    let error = with(&["optimizer.head.beta1=2.0"]).unwrap_err().to_string();
    assert!(error.contains("optimizer.head.beta1 is 2"), "{error}");
    let twice = ["optimizer.embedding_lr_ratio=4.0", "optimizer.embeddings.lr=0.1"];
    let error = with(&twice).unwrap_err().to_string();
    assert!(error.contains("embedding_lr_ratio is 4, expected 1"), "{error}");
}

#[test]
fn groups_of_adamw_are_optional_and_old_recipes_mean_what_they_did() {
    let recipe = with(&["optimizer.head.lr=0.01", "optimizer.others.weight_decay=0.1"]).unwrap();
    assert_eq!(Recipe::parse(&recipe.to_toml(), "test", &[]).unwrap(), recipe);
    let text = example().to_toml();
    assert!(!text.contains("[optimizer.head]"), "{text}");
    let old = text.replace("cautious = false\n", "");
    assert_ne!(old, text);
    assert_eq!(Recipe::parse(&old, "old.toml", &[]).unwrap(), example());
}
