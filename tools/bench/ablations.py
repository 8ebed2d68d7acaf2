"""Trains lehr's own family with each of its parts left out, for equally long, and says what each part is worth.

    cargo build --release -p lehr
    python tools/bench/time_to_loss.py --nanochat nanochat --out ../time-to-loss --minutes 2     # writes train.txt and val.txt
    python tools/bench/ablations.py --text ../time-to-loss --out ../ablations

It works in two parts:

1. Speeds: every variant makes SPEED_STEPS steps, twice in turn; the fastest quarter of its steps counts. Keep the machine idle for
   these minutes. `--speeds FILE` reads the speeds of an earlier call instead.
2. Losses: every variant trains for as long as the base needs for --steps steps, so a variant that is twice as fast makes twice as
   many steps. One run for each of --seeds. The number of steps is fixed before, so a busy machine changes no loss.

The base has all parts that a fitted recipe has in the first pass over a text. A row says what leaving a part out (or taking another
one) adds to the held-out bits per byte: the mean of the differences to the base with the same seed, and the 95 % interval of this
mean by Student's t. Positive: the part helps.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEED_STEPS = 40
BATCH, ROW = 8, 256

BASE = {
    "model.n_layers": 3,
    "model.hidden_size": 192,
    "model.n_heads": 3,
    "model.n_kv_heads": 3,
    "model.mlp_size": 768,
    "model.value_embeddings": "true",
    "model.bigram_rows": 40960,
    "optimizer.lr": 0.02,
    "optimizer.embeddings.lr": 0.115,
    "optimizer.embeddings.weight_decay": 0,
    "optimizer.head.lr": 0.0092,
    "optimizer.head.weight_decay": 0,
    "train.batch_size": BATCH,
    "train.seq_len": ROW,
    "eval.batches_max": 64,
}

# What differs from the base.
VARIANTS = {
    "base": {},
    "no QK-norm": {"model.qk_norm": "false", "model.qk_norm_gain": 1},
    "SwiGLU of the same size": {"model.mlp": "swiglu", "model.mlp_size": 512},
    "outputs not zero at the start": {"model.zero_init_outputs": "false"},
    "no soft cap of the logits": {"model.logit_softcap": 0},
    "no residual scalars": {"model.residual_scalars": "false"},
    "no x0 scalars": {"model.x0_scalars": "false"},
    "no value embeddings": {"model.value_embeddings": "false"},
    "no rows for pairs": {"model.bigram_rows": 0},
    "no smear": {"model.smear": "false"},
    "no backout": {"model.backout": "false"},
    "no norm of the embedding": {"model.embedding_norm": "false"},
    # A head's start and rate, as the matrix is both.
    "head tied to the embedding": {
        "model.tie_embeddings": "true",
        "model.head_init_std": 0,
        "model.embedding_init_std": 0.02,
        "optimizer.embeddings.lr": 0.0092,
        "optimizer.lazy_embeddings": "false",
    },
    "key offset": {"model.key_offset": "true"},
    "weights of the norms": {"model.norm_weights": "true"},
    "Muon every step": {"optimizer.every": 1},
    "dense embeddings": {"optimizer.lazy_embeddings": "false"},
    "no cautious decay": {"optimizer.cautious": "false"},
}

# 97.5 % points of Student's t, by the number of seeds.
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}


def main():
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = args.out / "tokenizer.json"
    if not tokenizer.exists():
        run([args.lehr, "tokenizer", "train", args.text / "train.txt", "--out", tokenizer, "--vocab-size", "8192"])
    speeds = read_speeds(args) if args.speeds else measure_speeds(args)
    steps = {name: round(args.steps * speeds[name] / speeds["base"]) for name in VARIANTS}
    losses = {}
    for seed in args.seeds:
        for name in VARIANTS:
            losses[name, seed] = bits_per_byte(args, name, seed, steps[name])
            print(f"{name}, seed {seed}, {steps[name]} steps: {losses[name, seed]:.4f}", file=sys.stderr, flush=True)
    print(table(args, speeds, steps, losses))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lehr", type=Path, default=ROOT / "target/release/lehr")
    parser.add_argument("--text", type=Path, required=True, help="a folder with train.txt and val.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--speeds", type=Path, help="speeds.json of an earlier call")
    parser.add_argument("--speeds-only", action="store_true")
    return parser.parse_args()


def read_speeds(args):
    speeds = json.loads(args.speeds.read_text())
    missing = [name for name in VARIANTS if name not in speeds]
    if missing:
        sys.exit(f"{args.speeds} lacks {', '.join(missing)}; measure again without --speeds")
    return speeds


def measure_speeds(args):
    times = {name: [] for name in VARIANTS}
    for repeat in range(2):
        for name in VARIANTS:
            folder = args.out / "speed"
            train(args, folder, name, 1, SPEED_STEPS)
            speeds = [row["tokens_per_s"] for row in metrics(folder) if "tokens_per_s" in row]
            times[name] += [BATCH * ROW / speed for speed in speeds[SPEED_STEPS // 4 :]]
    speeds = {}
    for name, steps in times.items():
        # With Muon every second step, steps differ: two neighbours count as one.
        pairs = sorted(a + b for a, b in zip(steps[::2], steps[1::2]))
        speeds[name] = 2 * BATCH * ROW / statistics.mean(pairs[: len(pairs) // 4])
        print(f"{name}: {speeds[name]:.0f} tokens/s", file=sys.stderr, flush=True)
    (args.out / "speeds.json").write_text(json.dumps(speeds, indent=2))
    if args.speeds_only:
        sys.exit(0)
    return speeds


def bits_per_byte(args, name, seed, steps):
    """The last evaluation of a run, which is made once: a folder that has it is read again."""
    folder = args.out / f"{name.replace(' ', '-')}-{seed}-{steps}"
    if not any("eval" in row and row["step"] == steps for row in metrics(folder)):
        train(args, folder, name, seed, steps)
    return [row["eval"]["bits_per_byte"] for row in metrics(folder) if "eval" in row][-1]


def train(args, folder, name, seed, steps):
    recipe = args.out / "base.toml"
    recipe.write_text((ROOT / "configs/depth-4.toml").read_text())
    settings = {
        **BASE,
        "run.dir": folder,
        "run.seed": seed,
        "run.tensorboard": "false",
        "data.path": args.text / "train.txt",
        "data.validation_path": args.text / "val.txt",
        "tokenizer.kind": "file",
        "tokenizer.path": args.out / "tokenizer.json",
        "train.steps": steps,
        "schedule.warmup_steps": min(20, steps // 4),
        "schedule.decay_steps": round(0.6 * steps),
        "eval.every_steps": steps,
        "sample.every_steps": 0,
        "checkpoint.every_steps": 1_000_000,
        **VARIANTS[name],
    }
    run(["rm", "-rf", folder])
    command = [args.lehr, "pretrain", recipe, "--plain"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    run(command)
    run(["rm", "-rf", folder / "checkpoints"])


def metrics(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(command):
    done = subprocess.run([os.fspath(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def table(args, speeds, steps, losses):
    lines = [f"| variant | tokens/s | steps | bits per byte | difference to the base |", "|---|---:|---:|---:|---:|"]
    n = len(args.seeds)
    for name in VARIANTS:
        mean = statistics.mean(losses[name, seed] for seed in args.seeds)
        differences = [losses[name, seed] - losses["base", seed] for seed in args.seeds]
        text = ""
        if name != "base":
            text = f"{statistics.mean(differences):+.4f}"
            if n > 1:
                half = STUDENT[n] * statistics.stdev(differences) / math.sqrt(n)
                text += f" ± {half:.4f}"
        lines.append(f"| {name} | {speeds[name]:,.0f} | {steps[name]} | {mean:.4f} | {text} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
