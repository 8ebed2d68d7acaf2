//! Arguments: each one is used, refused together with another, or named when it changes nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use super::Cli;

/// What the parser says of arguments: `None` if it accepts them.
fn parse(args: &str) -> Option<(ErrorKind, String)> {
    let args = std::iter::once("lehr").chain(args.split_whitespace());
    Cli::try_parse_from(args).err().map(|error| (error.kind(), error.to_string()))
}

/// Arguments that have no meaning together: the one that would be dropped is refused by name.
const REFUSED: &[(&str, &str)] = &[
    // A recipe file or a resumed run has what these choose.
    ("pretrain my.toml --minutes 5", "--minutes"),
    ("pretrain --resume runs/a --minutes 5", "--minutes"),
    ("pretrain my.toml --depth 2", "--depth"),
    ("pretrain --resume runs/a --depth 2", "--depth"),
    ("plan --depth 2", "--data"),
    ("finetune --model m --data a.jsonl --rank 8", "--method"),
    ("finetune --model m --data a.jsonl --weights nf4", "--method"),
    ("finetune my.toml --method lora", "--method"),
    ("finetune --resume runs/a --method lora", "--method"),
    ("plan --data a.txt --tokens-per-weight 2", "--depth"),
    ("plan --data a.txt --law r1 r2 r3 r4", "--depth"),
    ("pretrain --data a.txt --depth 2 --minutes 3 --tokens-per-weight 2", "--minutes"),
    ("plan --data a.txt --depth two", "--depth"),
    ("pretrain --resume runs/a --data a.txt", "--data"),
    ("pretrain --resume runs/a --out b", "--out"),
    ("pretrain --resume runs/a --seed 2", "--seed"),
    ("pretrain --resume runs/a --skip-bad", "--skip-bad"),
    ("pretrain --resume runs/a my.toml", "RECIPE"),
    ("pretrain --data a.txt --dry-run --json", "--dry-run"),
    ("finetune my.toml --kind labelled", "--kind"),
    ("finetune --resume runs/a --kind chat", "--kind"),
    ("finetune --resume runs/a --model runs/b", "--model"),
    ("finetune --resume runs/a --data a.jsonl", "--data"),
    ("finetune --resume runs/a --seed 2", "--seed"),
    ("finetune --resume runs/a --new-head", "--new-head"),
    // The most likely token is not drawn.
    ("generate m -p x --greedy --temperature 1", "--temperature"),
    ("generate m -p x --greedy --top-k 5", "--top-k"),
    ("generate m -p x --greedy --top-p 0.5", "--top-p"),
    ("generate m -p x --greedy --min-p 0.5", "--min-p"),
    ("chat m --greedy --temperature 1", "--temperature"),
    ("generate m -p x --stop=", "--stop"),
    ("chat m --stop=", "--stop"),
    ("generate m -p x --context 1", "--context"),
    // One prompt or many.
    ("generate m -p x --prompts p.txt", "--prompts"),
    ("generate m -p x --batch 2", "--batch"),
    ("generate m -p x --cache-tokens 99", "--cache-tokens"),
    ("generate m -p x --output o.jsonl", "--output"),
    ("generate m --prompts p.txt --json --logprobs 2", "--logprobs"),
    ("generate m -p x --logprobs 2", "--json"),
    ("embed m -t x --data a.txt", "--data"),
    ("tag m -t x --data a.txt", "--data"),
    ("classify m -t x --data a.txt", "--data"),
    ("classify m -t x --text-field body", "--text-field"),
    ("tag m -t x --text-field body", "--text-field"),
    ("data check --resume runs/a --data a.jsonl", "--data"),
    ("bench decode m --shape 1b", "--shape"),
    ("doctor m --compile sm_80", "--compile"),
    // Numbers that are none.
    ("eval m --data a.txt --threads 0", "--threads"),
    ("pretrain --minutes soon", "--minutes"),
    ("finetune --model a --data b --kind poems", "--kind"),
];

/// Arguments that are used together.
const ACCEPTED: &[&str] = &[
    "pretrain my.toml --data a.txt --out b --seed 2 --set train.steps=3 --device cpu --dtype f32",
    "pretrain --data a.txt --minutes 3 --set train.batch_size=8 --threads 2 --json",
    "finetune --model m --data a.jsonl --method lora --rank 8 --weights nf4",
    "finetune --model m --data a.jsonl --method qlora --rank 8",
    "finetune --model m --data a.jsonl --method dora --weights int8",
    "pretrain --data a.txt --depth 2 --minutes 3 --dry-run",
    "pretrain --data a.txt --depth 2 --tokens-per-weight 0.5 --law r1 r2 r3 r4 --dry-run",
    "plan --data a.txt --depth 2 --tokens-per-weight 0.5 --law r1 r2 r3 r4 --json",
    "plan --data a.txt --depth 2 --minutes 3 --set model.kind=llama --skip-bad --device cpu --json",
    "pretrain --resume runs/a --device cpu --dtype f32 --threads 2 --set run.fp8=false --json",
    "finetune my.toml --model runs/a --data a.jsonl --new-head --dry-run",
    "finetune --model runs/a --data a.jsonl --kind chat --seed 3 --out b",
    "finetune --resume runs/a --accept-changed-data --json",
    "finetune my.toml --skip-bad",
    "generate m -p x --greedy --repetition-penalty 1.1 --frequency-penalty=-1 -n 3 --stop a",
    "generate m -p x --stop a --stop b --greedy --seed 3",
    "generate m -p x --top-k 0 --top-p 0.9 --min-p 0.1 --temperature 1 --seed 3",
    "generate m -p x --json --logprobs 2",
    "generate m --prompts p.txt --batch 2 --cache-tokens 99 --output o.jsonl --context 64",
    "chat m --system s --template chatml -p x --presence-penalty=-0.5 --json --weights q8_0",
    "classify m -t a -t b --device cpu --json",
    "classify m --data a.jsonl --text-field body --out o.csv --threads 2",
    "tag m --data a.jsonl --text-field body --out o.jsonl --device cpu --threads 2 --json",
    "data check --model m --data a.jsonl --kind entities --method lora --examples 5 --html o.html",
    "embed m --data a.txt --out v.safetensors --prefix p --pooling mean --max-tokens 9 --json",
    "eval m --data a.jsonl --text-field body --skip-bad --window 64 --stride 32 --weights f32",
    "eval m --data a.jsonl --text-field body --label-field class --json",
    "chat m --template-args {} -p x",
    "convert m --to n --format bf16 --sample s.txt --threads 2 --json",
];

#[test]
fn arguments_without_a_meaning_together_are_refused_by_name() {
    for (args, name) in REFUSED {
        let (kind, says) = parse(args).unwrap_or_else(|| panic!("{args}: accepted"));
        let refuses = [
            ErrorKind::ArgumentConflict,
            ErrorKind::MissingRequiredArgument,
            ErrorKind::InvalidValue,
            ErrorKind::ValueValidation,
        ];
        assert!(refuses.contains(&kind), "{args}: {kind}");
        assert!(says.contains(name), "{args}: {says}");
    }
    for args in ACCEPTED {
        let refused = parse(args);
        assert!(refused.is_none(), "{args}: {refused:?}");
    }
}

/// Every argument of every command. Who adds one also decides with which others it has no meaning,
/// adds it to the tables above, and then here.
const ARGUMENTS: &[(&str, &str)] = &[
    ("quickstart", "out seconds threads json plain"),
    (
        "pretrain",
        "recipe data out resume accept_changed_data sets skip_bad seed device dtype threads \
         dry_run json plain minutes depth tokens_per_weight law",
    ),
    ("plan", "data minutes depth tokens_per_weight law sets skip_bad device dtype threads json"),
    (
        "finetune",
        "recipe data out resume accept_changed_data sets skip_bad seed device dtype threads \
         dry_run json plain model kind method rank weights new_head",
    ),
    (
        "generate",
        "model prompt prompts batch cache_tokens output greedy temperature top_k top_p min_p \
         repetition_penalty frequency_penalty presence_penalty seed max_tokens context stop \
         weights adapter device dtype threads logprobs json",
    ),
    (
        "chat",
        "model system template template_args prompt greedy temperature top_k top_p min_p \
         repetition_penalty frequency_penalty presence_penalty seed max_tokens context stop \
         weights adapter device dtype threads json",
    ),
    (
        "data check",
        "recipe data out resume accept_changed_data sets skip_bad seed device dtype threads \
         dry_run json plain model kind method rank weights new_head examples html",
    ),
    ("classify", "model text data text_field out device dtype threads json"),
    ("tag", "model text data text_field out device dtype threads json"),
    ("embed", "model text data out prefix pooling max_tokens device dtype threads json"),
    (
        "eval",
        "model data text_field label_field skip_bad window stride weights adapter device dtype \
         threads json",
    ),
    ("inspect", "model tensors json"),
    ("convert", "model to format sample adapter threads json"),
    ("verify", "model golden device dtype json"),
    ("doctor", "model compile json"),
];

#[test]
fn every_argument_is_in_the_tables() {
    let cli = Cli::command();
    let commands = cli.get_subcommands().filter(|c| c.get_name() != "bench");
    // A command with commands of its own has no arguments.
    let commands: Vec<(String, &clap::Command)> = commands
        .flat_map(|command| match command.has_subcommands() {
            false => vec![(command.get_name().to_owned(), command)],
            true => {
                let name =
                    |own: &clap::Command| format!("{} {}", command.get_name(), own.get_name());
                command.get_subcommands().map(|own| (name(own), own)).collect()
            }
        })
        .collect();
    for (name, command) in &commands {
        let known = ARGUMENTS.iter().find(|(command, _)| *command == name);
        let known: BTreeSet<_> = known.unwrap_or_else(|| panic!("{name}")).1.split(' ').collect();
        let ids = command.get_arguments().map(|arg| arg.get_id().as_str());
        let found: BTreeSet<_> = ids.filter(|id| !["help", "version"].contains(id)).collect();
        assert_eq!(found, known, "{name}");
    }
    assert_eq!(ARGUMENTS.len(), commands.len());
    Cli::command().debug_assert();
}
