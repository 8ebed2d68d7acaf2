//! Stage 2: sentiment of English and Chinese reviews, with one classifier for both.

use anyhow::Result;
use lehr_data::{ClassLoader, LabelSet, Labelled, LoaderOptions};
use lehr_eval::baseline::{BagOfWords, MajorityClass};
use lehr_model::{Classifier, Model};
use lehr_tensor::Philox;
use lehr_tokenizer::Tokenizer;
use lehr_train::recipe::{ModelConfig, ObjectiveKind, Recipe, TokenizerConfig};
use lehr_train::{Classify, Objective, Quiet, RunDir, Task, evaluate, write_report};

use super::corpus::{LANGUAGES, sentiment};
use super::plan::{FEW, Plan, SEEDS, SEQ_LEN};
use super::{Quickstart, Stage, pretraining};
use crate::stop;

/// Rows of a batch: about 15 reviews.
const BATCH_SIZE: usize = 8;
/// The same with few labels, so that there are enough steps to learn from.
const FEW_BATCH_SIZE: usize = 4;

/// The reviews of one language.
struct Reviews {
    train: Vec<Labelled>,
    dev: Vec<Labelled>,
    test: Vec<Labelled>,
}

impl Reviews {
    fn read(quickstart: &Quickstart, language: &str) -> Result<Self> {
        let data = quickstart.dir("data");
        let split = |name| sentiment(&data, language, name);
        Ok(Self { train: split("train")?, dev: split("dev")?, test: split("test")? })
    }

    /// [`FEW`] training examples drawn by `seed`.
    fn few(&self, seed: u64) -> Vec<Labelled> {
        let stream = Philox::new(seed, 0xFE37);
        let mut order: Vec<usize> = (0..self.train.len()).collect();
        order.sort_by_key(|i| stream.block(*i as u64)[0]);
        order.into_iter().take(FEW).map(|i| self.train[i].clone()).collect()
    }
}

/// One row of the comparison.
#[derive(Clone, Copy)]
struct Variant {
    pretrained: bool,
    few: bool,
    seed: u64,
}

impl Variant {
    fn name(self) -> String {
        let start = if self.pretrained { "pretrained" } else { "scratch" };
        format!("{}/{start}", if self.few { "few" } else { "all" })
    }
}

pub(super) fn run(quickstart: &mut Quickstart) -> Result<Stage> {
    quickstart.say("\n== 2. sentiment, English and Chinese: does pre-training help?");
    let reviews = [Reviews::read(quickstart, "en")?, Reviews::read(quickstart, "zh")?];
    let all: Vec<Labelled> = reviews.iter().flat_map(|r| r.train.clone()).collect();
    let labels = LabelSet::learn(&all)?;
    baselines(quickstart, &reviews, &labels)?;
    let tokenizer = pretraining::base(quickstart)?.tokenizer;
    for few in [true, false] {
        for seed in SEEDS {
            for pretrained in [false, true] {
                let variant = Variant { pretrained, few, seed };
                let last = format!("sentiment/zh/{}/{seed}", variant.name());
                if quickstart.results.get(&last).is_some() {
                    continue;
                }
                if measure(quickstart, variant, &reviews, &labels, &tokenizer)?
                    == Stage::Interrupted
                {
                    return Ok(Stage::Interrupted);
                }
            }
        }
    }
    Ok(Stage::Done)
}

/// The majority class and a bag-of-words logistic regression, on the same labels.
fn baselines(quickstart: &mut Quickstart, reviews: &[Reviews; 2], labels: &LabelSet) -> Result<()> {
    for (language, reviews) in LANGUAGES.iter().zip(reviews) {
        let pairs = |examples: &[Labelled]| -> Vec<(String, usize)> {
            let class = |e: &Labelled| Some((e.text.clone(), labels.class(&e.label)?));
            examples.iter().filter_map(class).collect()
        };
        let (dev, test) = (pairs(&reviews.dev), pairs(&reviews.test));
        let n = labels.names().len();
        let mut fit = |name: &str, train: &[Labelled]| -> Result<()> {
            let key = format!("sentiment/{language}/{name}");
            if quickstart.results.get(&key).is_some() {
                return Ok(());
            }
            let train = pairs(train);
            let model = BagOfWords::fit(&borrow(&train), &borrow(&dev), n)?;
            quickstart.results.put(&key, model.accuracy(&borrow(&test))?)
        };
        fit("all/bag_of_words", &reviews.train)?;
        for seed in SEEDS {
            fit(&format!("few/bag_of_words/{seed}"), &reviews.few(seed))?;
        }
        let key = format!("sentiment/{language}/majority");
        if quickstart.results.get(&key).is_none() {
            let majority = MajorityClass::fit(&borrow(&pairs(&reviews.train)), n)?;
            quickstart.results.put(&key, majority.accuracy(&borrow(&test))?)?;
        }
    }
    Ok(())
}

fn borrow(pairs: &[(String, usize)]) -> Vec<(&str, usize)> {
    pairs.iter().map(|(text, class)| (text.as_str(), *class)).collect()
}

/// Fine-tunes one variant and measures it on both test sets.
fn measure(
    quickstart: &mut Quickstart,
    variant: Variant,
    reviews: &[Reviews; 2],
    labels: &LabelSet,
    tokenizer: &Tokenizer,
) -> Result<Stage> {
    let Variant { pretrained, few, seed } = variant;
    let examples = |r: &Reviews| if few { r.few(seed) } else { r.train.clone() };
    let train: Vec<Labelled> = reviews.iter().flat_map(examples).collect();
    let dev: Vec<Labelled> = reviews.iter().flat_map(|r| r.dev.clone()).collect();
    let recipe = recipe(quickstart, variant);
    let model = match pretrained {
        true => pretraining::base(quickstart)?.model,
        false => Model::new(pretraining::base(quickstart)?.model.config().clone(), seed)?,
    };
    let options = LoaderOptions::shuffled(recipe.train.batch_size, SEQ_LEN, seed);
    let held_out = LoaderOptions::sequential(BATCH_SIZE, SEQ_LEN);
    let mut task = Task {
        objective: Box::new(Classify::new(
            Classifier::new(model, labels.names().to_vec(), seed)?,
            tokenizer.clone(),
        )),
        train: Box::new(ClassLoader::new(&train, labels, tokenizer, options)?),
        validation: Box::new(ClassLoader::new(&dev, labels, tokenizer, held_out)?),
    };
    // Keeps one of the classifiers for use.
    let kept =
        (pretrained && !few && seed == SEEDS[0]).then(|| RunDir::open(&recipe)).transpose()?;
    let outcome =
        lehr_train::run(&recipe, &mut task, kept.as_ref(), &mut Quiet, stop::on_signals())?;
    if !outcome.finished {
        return Ok(Stage::Interrupted);
    }
    if let Some(run) = &kept {
        write_report(run, &recipe)?;
    }
    let mut shown = Vec::new();
    for (language, reviews) in LANGUAGES.iter().zip(reviews) {
        let test = ClassLoader::new(&reviews.test, labels, tokenizer, held_out)?;
        let accuracy = accuracy(task.objective.as_ref(), &test)?;
        shown.push(format!("{language} {:.1}%", 100.0 * accuracy));
        let key = format!("sentiment/{language}/{}/{seed}", variant.name());
        quickstart.results.put(&key, accuracy)?;
    }
    quickstart.say(&format!(
        "{:15} seed {seed}: {}  ({:.0} s)",
        variant.name(),
        shown.join(", "),
        outcome.state.elapsed_s
    ));
    Ok(Stage::Done)
}

fn accuracy(objective: &dyn Objective, test: &ClassLoader) -> Result<f64> {
    Ok(evaluate(objective, test, 0)?.accuracy.unwrap_or(0.0))
}

/// The recipe of a variant, the same for both starts.
fn recipe(quickstart: &Quickstart, variant: Variant) -> Recipe {
    let plan = &quickstart.plan;
    let steps = if variant.few { plan.few_steps } else { plan.sentiment_steps };
    let (dir, data) = (quickstart.dir("sentiment"), quickstart.dir("data").join("sentiment"));
    let mut recipe = Plan::recipe(&dir, &data, ObjectiveKind::CLASSIFY, steps);
    recipe.run.seed = variant.seed;
    recipe.tokenizer = TokenizerConfig::Model;
    recipe.model = ModelConfig::Load { path: quickstart.dir("base").display().to_string() };
    recipe.optimizer = Plan::optimizer(5e-4, 10.0);
    recipe.train.batch_size = if variant.few { FEW_BATCH_SIZE } else { BATCH_SIZE };
    recipe.eval.every_steps = 0;
    recipe.sample.prompts.clear();
    recipe.checkpoint.every_steps = 0;
    recipe
}
