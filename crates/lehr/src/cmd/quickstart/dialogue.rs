//! Stage 3: answers to short questions, English and Chinese.

use anyhow::Result;
use lehr_data::{Conversation, LoaderOptions, Reading, SftLoader, read_conversations};
use lehr_model::Model;
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::ChatTemplate;
use lehr_train::recipe::{ModelConfig, ObjectiveKind, TokenizerConfig};
use lehr_train::{LanguageModel, Quiet, RunDir, Task, evaluate, write_report};

use super::corpus::{LANGUAGES, dialogue};
use super::plan::{Plan, SEEDS, SEQ_LEN};
use super::{Quickstart, Stage, pretraining};
use crate::stop;

/// Rows of a batch.
const BATCH_SIZE: usize = 8;

pub(super) fn run(quickstart: &mut Quickstart) -> Result<Stage> {
    quickstart.say("\n== 3. dialogue, English and Chinese");
    let tokenizer = pretraining::base(quickstart)?.tokenizer;
    for seed in SEEDS {
        for pretrained in [false, true] {
            let name = if pretrained { "pretrained" } else { "scratch" };
            let key = format!("dialogue/bits_per_byte/{name}/{seed}");
            if quickstart.results.get(&key).is_some() {
                continue;
            }
            let Some(bits) = measure(quickstart, pretrained, seed, &tokenizer)? else {
                return Ok(Stage::Interrupted);
            };
            quickstart
                .say(&format!("{name:10} seed {seed}: {bits:.3} bits per byte of test answers"));
            quickstart.results.put(&key, bits)?;
        }
    }
    Ok(Stage::Done)
}

fn conversations(quickstart: &Quickstart, split: &str) -> Result<Vec<Conversation>> {
    let mut all = Vec::new();
    for language in LANGUAGES {
        let path = dialogue(&quickstart.dir("data"), language, split);
        all.extend(read_conversations(path, &Reading::default())?);
    }
    Ok(all)
}

/// Fine-tunes one variant. Returns the bits per byte of the test answers, or `None` if interrupted.
fn measure(
    quickstart: &Quickstart,
    pretrained: bool,
    seed: u64,
    tokenizer: &Tokenizer,
) -> Result<Option<f64>> {
    let steps = quickstart.plan.dialogue_steps;
    let (dir, data) = (quickstart.dir("chat"), quickstart.dir("data").join("dialog"));
    let mut recipe = Plan::recipe(&dir, &data, ObjectiveKind::Chat, steps);
    recipe.run.seed = seed;
    recipe.tokenizer = TokenizerConfig::Model;
    recipe.model = ModelConfig::Load { path: quickstart.dir("base").display().to_string() };
    // Chosen on the development sets for each start: pre-trained embeddings need less.
    recipe.optimizer = match pretrained {
        true => Plan::optimizer(5e-4, 4.0),
        false => Plan::optimizer(1e-3, 6.0),
    };
    recipe.train.batch_size = BATCH_SIZE;
    recipe.eval.every_steps = 0;
    recipe.checkpoint.every_steps = 0;
    recipe.sample.every_steps = 0;
    recipe.sample.prompts =
        ["What is AI?", "Who are you?", "Tell me a joke", "什么是ai", "你是谁", "你会死吗"]
            .map(str::to_owned)
            .to_vec();
    let model = match pretrained {
        true => pretraining::base(quickstart)?.model,
        false => Model::new(pretraining::base(quickstart)?.model.config().clone(), seed)?,
    };
    let loader = |split: &str, options| -> Result<SftLoader> {
        let all = conversations(quickstart, split)?;
        Ok(SftLoader::new(&all, tokenizer, &ChatTemplate::default(), options)?)
    };
    let held_out = LoaderOptions::sequential(BATCH_SIZE, SEQ_LEN);
    let mut task = Task {
        objective: Box::new(LanguageModel::new(
            model,
            tokenizer.clone(),
            Some(ChatTemplate::default()),
        )),
        train: Box::new(loader("train", LoaderOptions::shuffled(BATCH_SIZE, SEQ_LEN, seed))?),
        validation: Box::new(loader("dev", held_out)?),
    };
    // Keeps one of the models for chat.
    let kept = (pretrained && seed == SEEDS[0]).then(|| RunDir::open(&recipe)).transpose()?;
    if kept.is_none() {
        recipe.sample.prompts.clear();
    }
    let outcome =
        lehr_train::run(&recipe, &mut task, kept.as_ref(), &mut Quiet, stop::on_signals())?;
    if !outcome.finished {
        return Ok(None);
    }
    if let Some(run) = &kept {
        write_report(run, &recipe)?;
    }
    let test = evaluate(task.objective.as_ref(), &loader("test", held_out)?, 0)?;
    Ok(Some(test.bits_per_byte.unwrap_or(f64::NAN)))
}
