"""The rows of the table of gpu_check.py: what is measured, the goals, and figures as text."""

import dataclasses
import math
import statistics
from dataclasses import dataclass

from gpu_run import FAILED, NO_TIME, TIME_LIMIT

# Models and optimisers whose training is compared between the devices.
ARCHS = {
    "gpt": ["--arch", "gpt"],
    "llama": ["--arch", "llama"],
    "lehr, Muon": ["--arch", "lehr", "--optimizer", "muon"],
}
N_LOSSES = 50
PARITY = {"f32": 1e-3, "bf16": 2e-2, "f16": 5e-3}
# Ways to make a step that change no bit of it.
OPTIONS = {
    "recompute": ["--activation-checkpointing", "recompute"],
    "offload": ["--activation-checkpointing", "offload"],
    "CUDA graph": ["--cuda-graph"],
}


# Fine-tunings of a new small Llama that are compared between the devices: the data below data/, and arguments of `lehr finetune`.
CHAT = "dialog/en_chatterbot.dev.jsonl"
FINETUNES = {
    "all weights, chat": (CHAT, []),
    "LoRA, chat": (CHAT, ["--method", "lora"]),
    "DoRA over int8, chat": (CHAT, ["--method", "dora", "--weights", "int8"]),
    "all weights, labels": ("sentiment/en_vader.dev.jsonl", []),
    "all weights, entities": ("", []),
}
FINETUNE_STEPS = 8
FINETUNE_PARITY = {"f32": 1e-3, "bf16": 2e-2}


@dataclass
class Speed:
    config: str
    arch: str
    batch: int
    length: int
    steps: int
    warmup: int

    @property
    def name(self):
        return f"train {self.config} {self.batch} × {self.length:,}"

    def arguments(self):
        given = dataclasses.asdict(self)
        return [word for key, value in given.items() for word in (f"--{key}", str(value))] + ["--json"]


SPEEDS = [
    Speed("gpt2", "gpt", 64, 1024, 20, 5),
    Speed("gpt2", "gpt", 16, 1024, 40, 5),
    Speed("llama_1b", "llama", 4, 4096, 12, 4),
]
TURNS = 2
# The configuration that has wide matrices, and how far its losses in fp8 may be from those in bf16.
FP8 = SPEEDS[2]
FP8_LIMIT = 2e-2
# Of PyTorch's tokens per second.
SPEED_GOAL = 1.15

# Share of the measured floor: of the bandwidth of a copy, or of the rate of a matrix product.
KERNEL_GOALS = {
    "norm": 0.85,
    "rope": 0.85,
    "loss": 0.85,
    "optimiser": 0.85,
    "attention forward": 0.60,
    "attention backward": 0.50,
}
DECODES = [(weights, batch) for weights in ("bf16", "q4_k") for batch in (1, 64)]


@dataclass
class Row:
    step: str
    result: str = NO_TIME
    figure: str = ""
    goal: str = ""
    peer: str = ""
    # Whether the exit code depends on it.
    is_correctness: bool = False

    def failed(self):
        return self.is_correctness and self.result in (FAILED, TIME_LIMIT)


def all_rows():
    yield Row("doctor")
    yield Row("ops", goal="every op equals its reference, twice", is_correctness=True)
    yield Row("goldens", goal="every item within its limit", is_correctness=True)
    for arch in ARCHS:
        for dtype, limit in PARITY.items():
            goal = f"≤ {limit:g} from the CPU's f32; two runs equal"
            yield Row(f"parity {arch} {dtype}", goal=goal, is_correctness=True)
    for task in FINETUNES:
        for dtype, limit in FINETUNE_PARITY.items():
            goal = f"≤ {limit:g} from the CPU's f32; two runs equal"
            yield Row(f"finetune {task}, {dtype}", goal=goal, is_correctness=True)
    for option in OPTIONS:
        yield Row(f"step {option}", goal="the same losses, bit for bit", is_correctness=True)
    for s in SPEEDS:
        yield Row(s.name, goal=f"≥ {SPEED_GOAL:.2f} × PyTorch")
    yield Row("train fp8", goal=f"losses ≤ {FP8_LIMIT:g} from those in bf16")
    for family, goal in KERNEL_GOALS.items():
        yield Row(f"kernels {family}", goal=f"≥ {goal:.2f} of the floor")
    for weights, batch in DECODES:
        yield Row(f"decode 8b {weights} × {batch}")


def finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def relative(a, b):
    """|a - b| / |b|; infinite where one of them is no number."""
    return abs(a - b) / max(abs(b), 1e-30) if finite(a) and finite(b) else math.inf


def median(lines, key):
    return statistics.median(line[key] for line in lines)


def share(lines, key):
    values = [line[key] for line in lines if finite(line.get(key))]
    return f"{100 * statistics.median(values):.1f} % of peak" if values else "share of peak unknown"


def peak_mb(lines):
    values = [line["device_peak_mb"] for line in lines if finite(line.get("device_peak_mb"))]
    return f", {max(values):,.0f} MB" if values else ""


def family_of(op):
    """The kind of kernel with a goal of its own that `op` is, or None."""
    op = op.lower()
    if "attention" in op:
        return "attention backward" if any(word in op for word in ("back", "bwd", "grad")) else "attention forward"
    words = {"norm": ["norm"], "rope": ["rope"], "loss": ["entropy", "loss"], "optimiser": ["adam", "optim", "muon"]}
    return next((family for family, parts in words.items() if any(part in op for part in parts)), None)


def shape_text(line):
    shape = line.get("shape", "")
    return " × ".join(str(n) for n in shape) if isinstance(shape, list) else str(shape)


def kernel_table(lines):
    form = {"ms": "{:.4f}", "gbytes_s": "{:,.0f}", "tflops": "{:,.1f}", "share": "{:.2f}"}
    head = ["op", "dtype", "shape", "ms", "GB/s", "TFLOP/s", "share", "goal"]
    rows = [head, ["---"] * 3 + ["---:"] * 5]
    for line in lines:
        numbers = [text.format(line[key]) if finite(line.get(key)) else "" for key, text in form.items()]
        goal = KERNEL_GOALS.get(family_of(line["op"]))
        rows.append([line["op"], str(line.get("dtype", "")), shape_text(line), *numbers, f"{goal:.2f}" if goal else ""])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def failing_lines(text):
    """What a test program says of failures, without its frame."""
    lines = [line for line in text.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if "panicked at" in line or "cases failed" in line), 0)
    return lines[start : start + 40]


def quoted(lines):
    return "\n".join(f"    {line[:300]}" for line in lines[:40])
