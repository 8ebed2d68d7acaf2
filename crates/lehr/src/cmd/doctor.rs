//! `lehr doctor`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use lehr_infer::Inspection;
use lehr_tensor::cuda::{self, CompileReport, DeviceInfo};
use lehr_tensor::{DType, available_isas, isa, threads};
use serde_json::{Value, json};

use super::compute::warn_of;
use super::memory::{self, Needs};
use crate::fail::Hinted;

/// Show what this machine offers: processor, GPUs, their driver and libraries, and what is missing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also show what this model needs and whether it fits: run directory, checkpoint, Hugging Face
    /// folder or GGUF file
    #[arg(conflicts_with = "compile")]
    model: Option<PathBuf>,
    /// Compile all GPU kernels for these architectures (sm_80,sm_90a) and show registers and
    /// spills; needs NVRTC, but no GPU
    #[arg(long, value_delimiter = ',', value_name = "ARCHS")]
    compile: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if !args.compile.is_empty() {
        return compile(&args.compile, args.json);
    }
    let gpus = gpus();
    let model = args.model.as_deref().map(Inspection::open).transpose()?;
    if let Some(model) = &model {
        warn_of(&model.warnings);
    }
    if args.json {
        let mut json = as_json(&gpus);
        if let Some(model) = &model {
            json["model"] = json!({
                "path": model.path, "fits": Needs::of(model).map(|needs| needs.to_json()),
            });
        }
        println!("{json}");
        return Ok(ExitCode::SUCCESS);
    }
    let isas: Vec<_> = available_isas().iter().map(ToString::to_string).collect();
    println!("lehr {}", env!("CARGO_PKG_VERSION"));
    println!(
        "CPU: {} threads, kernels for {}; it has {}",
        threads::n_threads(),
        isa(),
        isas.join(", ")
    );
    match &gpus {
        Ok(infos) if infos.is_empty() => println!("GPU: the driver finds none"),
        Ok(infos) => {
            for (i, info) in infos.iter().enumerate() {
                println!("GPU {i}: {}", describe(info));
            }
        }
        Err(error) => println!("GPU: none is usable: {error:#}"),
    }
    for library in cuda::libraries() {
        let found = library.found.as_deref().unwrap_or("missing");
        println!("lib{}: {found} ({})", library.name, library.purpose);
    }
    match cuda::usable() {
        Ok(true) => println!("device = \"auto\" takes GPU 0"),
        Ok(false) => println!("device = \"auto\" uses the CPU"),
        Err(error) => {
            println!("device = \"auto\" uses the CPU: {error}");
            if let Some(hint) = error.hint() {
                println!("hint: {hint}");
            }
        }
    }
    if let Some(model) = &model {
        println!("{}", model.path.display());
        memory::show(model);
    }
    Ok(ExitCode::SUCCESS)
}

fn gpus() -> Result<Vec<DeviceInfo>> {
    let n = cuda::device_count()?;
    (0..n).map(|i| Ok(cuda::device_info(i)?)).collect()
}

fn describe(info: &DeviceInfo) -> String {
    let (major, minor) = info.capability;
    let gib = info.memory_bytes as f64 / f64::from(1u32 << 30);
    let driver = match info.driver_version {
        0 => "no driver".to_owned(),
        v => format!("driver for CUDA {}.{}", v / 1000, v % 1000 / 10),
    };
    format!(
        "{}, {gib:.0} GiB, {} multiprocessors, compute capability {major}.{minor}, {driver}",
        info.name, info.n_sms
    )
}

fn as_json(gpus: &Result<Vec<DeviceInfo>>) -> Value {
    let gpu = |info: &DeviceInfo| {
        json!({
            "name": info.name, "sms": info.n_sms,
            "capability": [info.capability.0, info.capability.1],
            "memory_bytes": info.memory_bytes, "driver_version": info.driver_version,
        })
    };
    let libraries: serde_json::Map<_, _> =
        cuda::libraries().iter().map(|l| (l.name.to_owned(), json!(l.found))).collect();
    let usable = cuda::usable();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cpu": {
            "threads": threads::n_threads(), "isa": isa().to_string(),
            "isas": available_isas().iter().map(ToString::to_string).collect::<Vec<_>>(),
        },
        "gpus": gpus.as_ref().map_or_else(|_| Vec::new(), |all| all.iter().map(gpu).collect()),
        "gpu_error": gpus.as_ref().err().map(|e| format!("{e:#}")),
        "libraries": libraries,
        "gpu_usable": matches!(usable, Ok(true)),
        "why_not": usable.err().map(|e| e.to_string()),
    })
}

/// Compiles all kernels; exit code 1 if one spills registers.
fn compile(archs: &[String], json: bool) -> Result<ExitCode> {
    let is_arch = |arch: &&String| {
        arch.strip_prefix("sm_")
            .is_none_or(|n| n.len() < 2 || !n.starts_with(|c: char| c.is_ascii_digit()))
    };
    if let Some(bad) = archs.iter().find(is_arch) {
        let found = format!("--compile {bad}: not an architecture");
        return Err(Hinted::error(found, "as in --compile sm_80,sm_89,sm_90a"));
    }
    let archs: Vec<_> = archs.iter().map(String::as_str).collect();
    let reports = cuda::compile_all(&archs)?;
    let spilling: Vec<_> = reports.iter().filter(|r| r.spill_bytes > 0).collect();
    if json {
        let all: Vec<_> = reports.iter().map(report_json).collect();
        println!("{}", json!({ "kernels": all, "spilling": spilling.len() }));
    } else {
        for arch in archs {
            let of_arch = reports.iter().filter(|r| r.arch == arch);
            let most = of_arch.clone().map(|r| r.registers).max().unwrap_or(0);
            println!("{arch}: {} kernels compiled, at most {most} registers", of_arch.count());
        }
        for r in &spilling {
            println!(
                "SPILLS {} bytes: {} of {} ({}, {})",
                r.spill_bytes, r.kernel, r.source, r.dtype, r.arch
            );
        }
        println!(
            "{}",
            if spilling.is_empty() { "no register spills" } else { "registers are spilled" }
        );
    }
    Ok(if spilling.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report_json(r: &CompileReport) -> Value {
    let dtype: &DType = &r.dtype;
    json!({
        "source": r.source, "kernel": r.kernel, "dtype": dtype.to_string(), "arch": r.arch,
        "registers": r.registers, "spill_bytes": r.spill_bytes, "shared_bytes": r.shared_bytes,
    })
}
