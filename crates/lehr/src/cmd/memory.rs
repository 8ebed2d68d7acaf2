//! The memory that a model needs to generate, and whether this machine has it.

use lehr_infer::Inspection;
use lehr_model::{Outline, Spec};
use lehr_tensor::quant::WeightFormat;
use lehr_tensor::{arena, cuda};
use serde_json::{Value, json};

/// Formats in which the weights might be kept, by the names people know them by.
pub(crate) const FORMATS: [(&str, WeightFormat); 4] = [
    ("f32", WeightFormat::F32),
    ("bf16", WeightFormat::BF16),
    ("int8 (q8_0)", WeightFormat::Q8_0),
    ("q4_k", WeightFormat::Q4_K),
];

/// The bytes that one sequence of a model takes.
pub(crate) struct Needs<'a> {
    outline: &'a Outline,
    /// Keys and values of a token, as numbers.
    numbers_per_token: u64,
    context: u64,
}

/// Something that computes, with its memory.
pub(crate) struct Machine {
    name: String,
    bytes: u64,
    /// Bytes of a number in the cache.
    cache_width: u64,
}

impl Machine {
    /// The processor and all GPUs that can be found.
    pub(crate) fn all() -> Vec<Self> {
        let bytes = arena::limit_bytes() as u64;
        let cpu = Self { name: "CPU".to_owned(), bytes, cache_width: 4 };
        let n_gpus = cuda::device_count().unwrap_or(0);
        let gpu = |i| {
            let info = cuda::device_info(i).ok()?;
            let bytes = info.memory_bytes as u64;
            Some(Self { name: format!("GPU {i}"), bytes, cache_width: 2 })
        };
        std::iter::once(cpu).chain((0..n_gpus).filter_map(gpu)).collect()
    }
}

impl<'a> Needs<'a> {
    /// The needs of a model that generates; `None` for others.
    pub(crate) fn of(found: &'a Inspection) -> Option<Self> {
        let (config, outline) = (found.config.as_ref()?, found.outline.as_ref()?);
        outline.is_causal.then(|| Self::new(&config.spec(), outline))
    }

    fn new(spec: &Spec, outline: &'a Outline) -> Self {
        let context = spec.max_positions as u64;
        Self { outline, numbers_per_token: spec.n_cached() / context.max(1), context }
    }

    /// Bytes of keys and values of a token, in numbers of `width` bytes.
    pub(crate) fn per_token(&self, width: u64) -> u64 {
        self.numbers_per_token.saturating_mul(width)
    }

    /// Tokens that have room beside the weights, at most the context; `None` if the weights have no
    /// room.
    fn tokens(&self, machine: &Machine, format: WeightFormat) -> Option<u64> {
        let left = machine.bytes.checked_sub(self.outline.weight_bytes(format))?;
        let tokens = left / self.per_token(machine.cache_width).max(1);
        (tokens > 1).then(|| tokens.min(self.context))
    }

    /// One line for each machine: the longest context in each format of the weights.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |machine: &Machine| {
            let verdict = |(name, format)| match self.tokens(machine, format) {
                None => format!("{name} no"),
                Some(n) if n == self.context => format!("{name} the full context"),
                Some(n) => format!("{name} --context {n}"),
            };
            let verdicts = FORMATS.map(verdict).join(", ");
            format!("{} ({}): {verdicts}", machine.name, bytes(machine.bytes))
        };
        Machine::all().iter().map(line).collect()
    }

    /// The same for programs.
    pub(crate) fn to_json(&self) -> Value {
        let machine = |machine: &Machine| {
            let tokens = FORMATS
                .map(|(_, format)| (format!("{format:?}"), json!(self.tokens(machine, format))));
            json!({
                "name": machine.name, "memory_bytes": machine.bytes,
                "context": Value::Object(tokens.into_iter().collect()),
            })
        };
        Machine::all().iter().map(machine).collect()
    }
}

/// Prints what a model needs: weights and cache by format, then what fits this machine.
pub(crate) fn show(found: &Inspection) {
    let (Some(config), Some(outline)) = (&found.config, &found.outline) else { return };
    let needs = Needs::of(found);
    match &needs {
        None => line("memory", "weights"),
        Some(needs) => {
            let n = needs.context;
            line("memory", &format!("weights; keys and values of a token, and of all {n}"));
        }
    }
    for (name, format) in FORMATS {
        let weights = bytes(outline.weight_bytes(format));
        // Keys and values are kept as floats.
        let cache = match (format, &needs) {
            (WeightFormat::F32 | WeightFormat::BF16, Some(needs)) => {
                let width = format.block_bytes() as u64;
                let full = bytes(config.spec().n_cached().saturating_mul(width));
                format!("  {:>10}  {full:>10}", bytes(needs.per_token(width)))
            }
            _ => String::new(),
        };
        println!("    {name:12} {weights:>10}{cache}");
    }
    for (i, text) in needs.iter().flat_map(Needs::lines).enumerate() {
        line(if i == 0 { "fits" } else { "" }, &text);
    }
}

/// Prints a fact.
pub(crate) fn line(key: &str, value: &str) {
    println!("  {key:14} {value}");
}

/// Bytes for people: `248.9 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    scaled(n, 1024.0, [" B", " KiB", " MiB", " GiB", " TiB"])
}

/// Formats a number in the largest unit in which it is at least 1.
pub(crate) fn scaled(n: u64, step: f64, units: [&str; 5]) -> String {
    let mut value = n as f64;
    let mut power = 0;
    while value >= step && power + 1 < units.len() {
        value /= step;
        power += 1;
    }
    match power {
        0 => format!("{n}{}", units[0]),
        _ => format!("{value:.1}{}", units[power]),
    }
}
