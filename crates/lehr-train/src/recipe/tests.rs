use super::*;
use lehr_model::{ActivationCheckpointing, DTypeChoice, DeviceChoice};

fn example() -> Recipe {
    Recipe {
        run: RunConfig {
            dir: "runs/x".into(),
            seed: 1,
            device: DeviceChoice::Cpu,
            dtype: DTypeChoice::F32,
            fp8: false,
        },
        data: DataConfig {
            path: "a.txt".into(),
            validation_path: String::new(),
            validation_fraction: 0.1,
            document_bytes: 2048,
            text_field: "text".into(),
            label_field: "label".into(),
        },
        tokenizer: TokenizerConfig::Train { vocab_size: 512, pattern: "gpt4".into() },
        model: ModelConfig::Gpt2 {
            n_layers: 2,
            hidden_size: 32,
            n_heads: 2,
            context: 64,
            init_std: 0.02,
        },
        objective: ObjectiveKind::NextToken,
        optimizer: OptimizerConfig::Adamw {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            embedding_lr_ratio: 1.0,
            in_backward: false,
        },
        schedule: ScheduleConfig::Cosine { warmup_steps: 2, min_ratio: 0.1 },
        train: TrainConfig {
            steps: 10,
            rows: 2,
            len: 64,
            accumulation: 1,
            activations: ActivationCheckpointing::None,
            cuda_graph: false,
        },
        eval: EvalConfig { every_steps: 5, batches_max: 0 },
        sample: SampleConfig {
            every_steps: 0,
            prompts: vec!["The".into()],
            max_tokens: 8,
            temperature: 0.8,
        },
        checkpoint: CheckpointConfig { every_steps: 5, keep: 2 },
    }
}

#[test]
fn a_recipe_written_and_read_is_the_same() {
    let recipe = example();
    assert_eq!(Recipe::parse(&recipe.to_toml(), "test", &[]).unwrap(), recipe);
}

#[test]
fn overrides_change_numbers_texts_and_kinds() {
    let sets =
        ["optimizer.lr=1", "run.dir=runs/y", "train.steps=7", "sample.prompts=[\"a\", \"b\"]"];
    let sets: Vec<_> = sets.iter().map(|s| (*s).to_owned()).collect();
    let recipe = example().with_overrides(&sets).unwrap();
    let OptimizerConfig::Adamw { lr, .. } = recipe.optimizer;
    assert_eq!((lr, recipe.run.dir.as_str(), recipe.train.steps), (1.0, "runs/y", 7));
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
    let error = example().with_overrides(&["trian.steps=2".into()]).unwrap_err();
    assert_eq!(error.hint().unwrap(), "did you mean `train`?");
}

#[test]
fn all_impossible_settings_are_reported_at_once() {
    let sets = ["train.rows=0", "optimizer.beta2=1.5", "train.len=100"];
    let sets: Vec<_> = sets.iter().map(|s| (*s).to_owned()).collect();
    let text = example().with_overrides(&sets).unwrap_err().to_string();
    for part in ["train.rows is 0", "optimizer.beta2 is 1.5", "train.len is 100"] {
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
