"""Compares lehr's training step with PyTorch's on this machine.

    cargo build --release -p lehr
    python tools/bench/side_by_side.py --lehr target/release/lehr --out docs/bench.md

Every measurement is a process of its own. Within a round lehr and each mode of PyTorch run in turn, and the order is turned
by one from round to round, so that heat and other users of the machine hit all alike. Reported are medians over the rounds:

- speed: tokens/s of lehr divided by those of the fastest mode of PyTorch; above 1 lehr is faster;
- memory: peak resident size of lehr divided by that of the smallest mode of PyTorch; below 1 lehr needs less;
- first step: seconds from the first batch to the end of the first step, which contains compilation.

Memory is that of the whole process. The headline says what importing torch alone takes (its CUDA build takes more than its CPU
build), so that one can tell the library from the work.

Only medians on a machine that is otherwise idle mean something: `busy cores` below the number of threads says it was not.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

TORCH_BENCH = Path(__file__).resolve().parent / "torch_bench.py"
ROUNDS_MIN = 5


def words(text):
    return [word for word in text.split(",") if word]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=words, default=["tiny", "small", "gpt2_64"], help="tiny,small,gpt2,gpt2_64")
    parser.add_argument("--archs", type=words, default=["gpt", "llama"], help="gpt,llama")
    parser.add_argument(
        "--modes",
        type=words,
        default=["eager", "compile", "bf16", "compile_bf16"],
        help="PyTorch: eager,compile,bf16,compile_bf16",
    )
    parser.add_argument("--dtype", default="auto", help="lehr: auto, f32 or bf16")
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN, help=f"at least {ROUNDS_MIN}")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each process")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--lehr", default="target/release/lehr", help="path of the program")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--out", type=Path, help="write the Markdown table here too")
    parser.add_argument("--raw", type=Path, help="append every measurement here, one JSON line each")
    args = parser.parse_args()
    if args.rounds < ROUNDS_MIN:
        parser.error(f"--rounds {args.rounds}: a median of fewer than {ROUNDS_MIN} says little")
    return args


def measure(command):
    """Runs one process and returns the JSON object of its last line."""
    result = subprocess.run(command, capture_output=True, text=True)
    lines = result.stdout.strip().splitlines()
    if result.returncode != 0 or not lines:
        sys.exit(f"{' '.join(command)}\nended with {result.returncode} and printed\n{result.stdout}{result.stderr}")
    return json.loads(lines[-1])


def commands(args, config, arch):
    """The peers by name, lehr first."""
    common = ["--config", config, "--arch", arch, "--steps", str(args.steps), "--threads", str(args.threads)]
    yield "lehr", [args.lehr, "bench", "step", *common, "--dtype", args.dtype, "--json"]
    for mode in args.modes:
        yield f"torch {mode}", [args.python, str(TORCH_BENCH), *common, "--mode", mode]


def measure_all(args):
    """All measurements: (config, arch) to peer to list of JSON objects."""
    found = defaultdict(lambda: defaultdict(list))
    for round_ in range(args.rounds):
        for config in args.configs:
            for arch in args.archs:
                peers = list(commands(args, config, arch))
                turn = round_ % len(peers)
                for peer, command in peers[turn:] + peers[:turn]:
                    line = measure(command)
                    found[config, arch][peer].append(line)
                    speed, memory = line["tok_s"], line["peak_rss_mb"]
                    print(f"round {round_ + 1} {config} {arch} {peer}: {speed} tokens/s, {memory} MB", file=sys.stderr)
                    if args.raw:
                        with args.raw.open("a") as file:
                            file.write(json.dumps(line) + "\n")
    return found


def import_mb(args):
    """Peak resident size of a Python process that only imports torch."""
    code = "import json, resource, torch; print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))"
    return measure([args.python, "-c", code])


def check_same_work(config, arch, peers):
    """Refuses to compare models or batches of different size."""
    for key in ["params", "B", "T", "threads"]:
        values = {peer: lines[0][key] for peer, lines in peers.items()}
        if len(set(values.values())) > 1:
            sys.exit(f"{config} {arch}: `{key}` differs, so the work differs: {values}")


def median(lines, key):
    return statistics.median(line[key] for line in lines)


def table(found, modes):
    """The Markdown table and the geometric means below it."""
    names = ["lehr", *(f"torch {mode}" for mode in modes)]
    head = ["config", "arch", *(f"{n} tokens/s" for n in names), "speed", *(f"{n} MB" for n in names), "memory"]
    head += [f"{n} first step s" for n in names] + ["busy cores"]
    rows, speeds, memories = [], [], []
    for (config, arch), peers in found.items():
        check_same_work(config, arch, peers)
        rate, memory, first, busy = (
            {n: median(peers[n], key) for n in names} for key in ["tok_s", "peak_rss_mb", "first_step_s", "busy_cores"]
        )
        speeds.append(rate["lehr"] / max(rate[n] for n in names[1:]))
        memories.append(memory["lehr"] / min(memory[n] for n in names[1:]))
        row = [config, arch, *(f"{rate[n]:,.0f}" for n in names), f"**{speeds[-1]:.2f}**"]
        row += [*(f"{memory[n]:,.0f}" for n in names), f"**{memories[-1]:.2f}**"]
        row += [*(f"{first[n]:.2f}" for n in names), f"{min(busy.values()):.2f}"]
        rows.append(row)
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows]]
    lines += ["", f"Geometric means: speed {mean(speeds):.2f}, memory {mean(memories):.2f}."]
    return "\n".join(lines)


def mean(ratios):
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))


def processor():
    """The name of the processor, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main():
    args = arguments()
    found = measure_all(args)
    peers = next(iter(found.values()))
    versions = {lines[0]["peer"]: lines[0]["version"] for lines in peers.values()}
    about = ", ".join(f"{peer} {version}" for peer, version in versions.items())
    text = f"{about}; {processor()}, {args.threads} threads; medians of {args.rounds} rounds of {args.steps} steps. "
    text += f"Importing torch alone: {import_mb(args):,.0f} MB.\n\n"
    text += table(found, args.modes)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
