//! The command line: one file per subcommand in `cmd/`.

#[macro_use]
mod out;
mod cmd;
mod fail;
mod live;
mod output;
mod stop;
mod ui;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lehr_infer::Notice;

/// One program for the whole life of a language model.
#[derive(Parser)]
#[command(name = "lehr", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pre-train, fine-tune, compare and chat on bundled text, in minutes
    Quickstart(cmd::quickstart::Args),
    /// Show what pre-training on a text would be: model, tokens, time and memory
    Plan(cmd::plan::Args),
    /// Pre-train a model on text
    Pretrain(cmd::pretrain::Args),
    /// Fine-tune a model on conversations, labelled texts, named entities or more text
    Finetune(cmd::finetune::Args),
    /// Look at data before it is trained on
    Data(cmd::data::Args),
    /// Continue a text, or all prompts of a file
    Generate(cmd::generate::Args),
    /// Talk to a model
    Chat(cmd::chat::Args),
    /// Label texts with a fine-tuned classifier
    Classify(cmd::classify::Args),
    /// Find the named entities of texts with a fine-tuned model
    Tag(cmd::tag::Args),
    /// Turn texts into vectors that represent their meaning
    Embed(cmd::embed::Args),
    /// Evaluate how well a model predicts a text, labels texts, or finds named entities
    Eval(cmd::eval::Args),
    /// Show what a model is: sizes, memory, tokenizer, files
    Inspect(cmd::inspect::Args),
    /// Write a model in another format, with a proof that the copy computes the same
    Convert(cmd::convert::Args),
    /// Compare a model with results of its reference implementation
    Verify(cmd::verify::Args),
    /// Measure speed
    Bench(cmd::bench::Args),
    /// Show what this machine offers: processor, GPUs, libraries, and what is missing
    Doctor(cmd::doctor::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    lehr_infer::on_notice(|notice| match notice {
        Notice::Damaged { .. } => eprintln!("warning: {notice}"),
        _ => eprintln!("{notice}"),
    });
    let result = cmd::compute::check_environment().and_then(|()| run(command));
    match result.and_then(|code| out::check().map(|()| code)) {
        Ok(code) => code,
        Err(error) => fail::report(&error),
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    if matches!(command, Command::Pretrain(_) | Command::Finetune(_)) {
        stop::preparing(stop::Preparation { style: ui::Style::Human, run: None });
        stop::on_signals();
    }
    match command {
        Command::Quickstart(args) => cmd::quickstart::run(&args),
        Command::Plan(args) => cmd::plan::run(args),
        Command::Pretrain(args) => cmd::pretrain::run(&args),
        Command::Finetune(args) => cmd::finetune::run(&args),
        Command::Data(args) => cmd::data::run(&args),
        Command::Generate(args) => cmd::generate::run(&args),
        Command::Chat(args) => cmd::chat::run(&args),
        Command::Classify(args) => cmd::classify::run(&args),
        Command::Tag(args) => cmd::tag::run(&args),
        Command::Embed(args) => cmd::embed::run(&args),
        Command::Eval(args) => cmd::eval::run(&args),
        Command::Inspect(args) => cmd::inspect::run(&args),
        Command::Convert(args) => cmd::convert::run(&args),
        Command::Verify(args) => cmd::verify::run(&args),
        Command::Bench(args) => cmd::bench::run(&args),
        Command::Doctor(args) => cmd::doctor::run(&args),
    }
}
