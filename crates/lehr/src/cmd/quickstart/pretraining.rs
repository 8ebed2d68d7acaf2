//! Stage 1: a language model from random weights.

use anyhow::Result;
use lehr_infer::Loaded;
use lehr_train::recipe::ObjectiveKind;
use lehr_train::{Quiet, RunDir, machine_gflops, prepare, write_report};

use super::plan::Plan;
use super::{Quickstart, Stage};
use crate::stop;
use crate::ui::{Show, Style};

/// Trains tokenizer and model in `base/`.
pub(super) fn run(quickstart: &mut Quickstart) -> Result<Stage> {
    let (dir, corpus) = (quickstart.dir("base"), quickstart.dir("corpus"));
    let steps = quickstart.plan.pretrain_steps;
    if quickstart.results.get("pretrain/bits_per_byte").is_some() {
        return Ok(Stage::Done);
    }
    quickstart.say("\n== 1. pre-training");
    let recipe = Plan::recipe(&dir, &corpus, ObjectiveKind::NextToken, steps);
    let run = RunDir::open(&recipe)?;
    let mut task = prepare(&recipe, &run.cache(), &mut |text| quickstart.say(text))?;
    let style = if quickstart.plain { Style::Plain } else { Style::Human };
    let (mut show, mut quiet) = (Show::new(style, machine_gflops()), Quiet);
    let observer: &mut dyn lehr_train::Observer =
        if quickstart.json { &mut quiet } else { &mut show };
    let outcome = lehr_train::run(&recipe, &mut task, Some(&run), observer, stop::on_signals())?;
    drop(show);
    if !outcome.finished {
        return Ok(Stage::Interrupted);
    }
    write_report(&run, &recipe)?;
    let results = &mut quickstart.results;
    results.put("pretrain/seconds", outcome.state.elapsed_s)?;
    if let Some(bits) = outcome.evaluation.and_then(|e| e.bits_per_byte) {
        results.put("pretrain/bits_per_byte", bits)?;
    }
    Ok(Stage::Done)
}

/// The pre-trained model and its tokenizer.
pub(super) fn base(quickstart: &Quickstart) -> Result<Loaded> {
    Ok(Loaded::open_to_train(&quickstart.dir("base"))?)
}
