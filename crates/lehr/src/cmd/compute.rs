//! How a command computes: options that several commands share.

use std::num::NonZeroUsize;

use anyhow::Result;
use lehr_model::Weights;
use lehr_tensor::{available_isas, threads};

use crate::fail::Hinted;

/// The threads of a command.
#[derive(clap::Args)]
pub(crate) struct ThreadArgs {
    /// Number of threads [default: all cores]
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

impl ThreadArgs {
    /// Makes all following kernels run with them.
    pub(crate) fn apply(&self) {
        if let Some(n) = self.threads {
            threads::set_n_threads(n.get());
        }
    }
}

/// What a command that only uses a model does with its weights.
#[derive(clap::Args)]
pub(crate) struct UseArgs {
    /// Keep the matrices of the blocks so: stored, f32, bf16, f16, q8_0, int8, int8-row, q6_k, q5_k,
    /// q4_k, q4_0, int4, int4-row, nf4
    #[arg(long, value_name = "FORMAT", default_value = "stored")]
    pub(crate) weights: Weights,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
}

/// Refuses environment variables that the engine would otherwise pass over.
pub(crate) fn check_environment() -> Result<()> {
    let isas: Vec<_> = available_isas().iter().map(ToString::to_string).collect();
    let isas = isas.join(", ");
    let is_isa = |value: &str| isas.split(", ").any(|isa| isa == value);
    let is_count = |value: &str| value.parse::<NonZeroUsize>().is_ok();
    let is_size = |value: &str| value.parse::<f64>().is_ok_and(|gib| gib > 0.0);
    check("LEHR_ISA", is_isa, &format!("one this processor has: {isas}"))?;
    check("LEHR_THREADS", is_count, "a number of threads, at least 1")?;
    check("LEHR_MEMORY_GB", is_size, "gibibytes, more than 0")
}

fn check(key: &str, is_valid: impl Fn(&str) -> bool, expected: &str) -> Result<()> {
    match std::env::var_os(key) {
        Some(value) if !value.to_str().is_some_and(is_valid) => {
            let found = value.to_string_lossy();
            let reason = format!("environment variable {key} is {found:?}, expected {expected}");
            Err(Hinted::error(reason, format!("change it, or remove it with `unset {key}`")))
        }
        _ => Ok(()),
    }
}
