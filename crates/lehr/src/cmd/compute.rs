//! Options of device, type and threads that several commands share.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lehr_infer::{Loaded, open_adapter};
use lehr_model::{Compute, DTypeChoice, DeviceChoice, Model, Weights};
use lehr_tensor::{DType, available_isas, threads, tile16};

use crate::fail::Hinted;

/// Threads of a command.
#[derive(clap::Args)]
pub(crate) struct ThreadArgs {
    /// Number of threads [default: all cores]
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

impl ThreadArgs {
    /// Sets the number of threads for all following kernels.
    pub(crate) fn apply(&self) {
        if let Some(n) = self.threads {
            threads::set_n_threads(n.get());
        }
    }
}

/// Device of a command.
#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// auto (a GPU if one is usable), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceChoice,
    /// Type of activations: auto (bf16 on a GPU, f32 on the CPU), f32, bf16, or on a GPU f16. On
    /// the CPU bf16 is the type of the operands of products
    #[arg(long, default_value = "auto")]
    pub(crate) dtype: DTypeChoice,
}

impl DeviceArgs {
    /// Returns the device and its type. Reports on standard error why a GPU is not used.
    pub(crate) fn choose(&self) -> Result<Compute> {
        let mut begin = |n| eprintln!("compiling {n} files of GPU kernels, once");
        let compute = Compute::choose_and_say(self.device, self.dtype, &mut begin)?;
        if let Some(note) = &compute.note {
            eprintln!("note: {note}");
        }
        Ok(compute)
    }

    /// Moves a model there. Says on standard error what its files hold that it does not use.
    pub(crate) fn place(&self, model: &Model) -> Result<()> {
        warn_of(&model.warnings());
        let compute = self.choose()?;
        if !compute.device.is_cuda() && compute.dtype == DType::BF16 {
            let stored = model.params().stored();
            let n = stored.iter().filter(|m| !m.matrix().format().is_float()).count();
            if n > 0 {
                eprintln!(
                    "note: --dtype bf16 changes nothing for the {n} quantised matrices; on the CPU \
                     they have products of their own"
                );
            }
        }
        Ok(model.to_device(compute.device, compute.dtype)?)
    }
}

/// Prints warnings of a model's files.
pub(crate) fn warn_of(warnings: &[String]) {
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
}

/// Weight format of a command that only uses a model.
#[derive(clap::Args)]
pub(crate) struct UseArgs {
    /// Format of the matrices of the blocks: stored, f32, bf16, f16, q8_0, int8, int8-row, q6_k,
    /// q5_k, q4_k, q4_0, int4, int4-row, nf4
    #[arg(long, value_name = "FORMAT", default_value = "stored")]
    pub(crate) weights: Weights,
    /// LoRA adapter that was trained on this model: a folder in the format of PEFT, or a run
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
}

impl UseArgs {
    /// Opens a model without its tokenizer.
    pub(crate) fn open_model(&self, path: &Path) -> Result<Model> {
        Ok(match &self.adapter {
            None => Model::open(path, self.weights)?,
            Some(adapter) => {
                let adapter = open_adapter(adapter)?;
                Model::open_folder_with_adapter(path, self.weights, &adapter)?
            }
        })
    }

    /// Opens a model with its tokenizer, and with the adapter if there is one.
    pub(crate) fn open(&self, model: &Path) -> Result<Loaded> {
        Ok(match &self.adapter {
            None => Loaded::open(model, self.weights)?,
            Some(adapter) => Loaded::open_with_adapter(model, adapter, self.weights)?,
        })
    }

    /// Moves a model to the device. Reports on standard error if some of its matrices are not in
    /// the requested format.
    pub(crate) fn place(&self, model: &Model) -> Result<()> {
        if model.n_fallback_matrices() > 0 {
            let mut found = BTreeMap::<String, usize>::new();
            for stored in model.params().stored() {
                *found.entry(stored.matrix().format().to_string()).or_default() += 1;
            }
            let list: Vec<_> = found.iter().map(|(format, n)| format!("{n} in {format}")).collect();
            eprintln!(
                "note: {} matrices are in another format than --weights says, the nearest whose \
                 blocks fill their rows: {}",
                model.n_fallback_matrices(),
                list.join(", ")
            );
        }
        self.device.place(model)
    }
}

/// Refuses values of environment variables that the engine would otherwise ignore.
pub(crate) fn check_environment() -> Result<()> {
    let isas: Vec<_> = available_isas().iter().map(ToString::to_string).collect();
    let isas = isas.join(", ");
    let is_isa = |value: &str| isas.split(", ").any(|isa| isa == value);
    let is_count = |value: &str| value.parse::<NonZeroUsize>().is_ok();
    let is_size = |value: &str| value.parse::<f64>().is_ok_and(|gib| gib > 0.0);
    let is_cuda = |value: &str| ["", "driver", "emulator"].contains(&value);
    check("LEHR_CUDA", is_cuda, "driver or emulator")?;
    let tiles: Vec<_> = tile16::available().iter().map(ToString::to_string).collect();
    let tiles = tiles.join(", ");
    let is_tile = |value: &str| tiles.split(", ").any(|isa| isa == value);
    check("LEHR_BF16", is_tile, &format!("one this processor has: {tiles}"))?;
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
