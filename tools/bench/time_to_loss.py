"""Compares pre-training by lehr with nanochat's on this machine: bits per byte of held-out text against wall clock.

    git clone https://github.com/karpathy/nanochat && git -C nanochat checkout 92d63d4
    pip install torch numpy pyarrow rustbpe tiktoken wandb filelock requests jinja2 pyyaml
    cargo build --release -p lehr
    python tools/bench/time_to_loss.py --nanochat nanochat --out ../time-to-loss --json ../time-to-loss.json

Both get the same text: data/pretrain, or --text, in documents of about 2,000 characters, shuffled, 5 % of them held out. nanochat
reads the documents as they are. lehr reads train.txt, where a blank line joins them, and cuts it at paragraphs again.

nanochat runs once, by the flags below and --num-iterations. lehr runs once for each of --minutes, by its own plan. What follows
`--` goes to `lehr pretrain`. Every run has a new folder: tokenizer, tokens, compiled code and model are made anew, and the clock
starts with the first process, which trains the tokenizer. It stops when the last one has ended and the model is saved. Both run
on the processor. nanochat needs a C++ compiler there, for torch.compile.

Columns of bits per byte:

- own: the last evaluation during the run, by the program's own rules. These differ, so compare them within a program only.
  nanochat fills a row of 257 tokens with the shortest document that it holds and drops what does not fit. Of data/pretrain its
  512 rows are the beginnings of the 50 shortest held-out documents, each ten times. lehr takes the first 64 batches of
  neighbouring rows; their size depends on the plan. It counts the bits of end-of-document tokens, which have no bytes.
- same bytes: the saved model scores all of val.txt, document by document, in f32: windows of 256 tokens, one every 128, and each
  token scored once, in the first window that has it. Bits of all tokens by bytes of all documents. nanochat's windows begin with
  its token for the beginning of a document, which counts as one of the 256. lehr has no such token and does not predict the first
  token of a document (`lehr eval` leaves it out), so it is charged log2 of the vocabulary's size for it, as if guessing blindly.
- rest: as before, without the first token of each document, its bits and its bytes, for both. The first tokens of the two
  programs are not equally long. They are a few hundred bytes in half a million.

- beginnings: the text that nanochat's own evaluation sees, scored as `same bytes` is: the first 256 of nanochat's tokens of the 50
  shortest held-out documents. With data/pretrain all of them are English. It needs a run of nanochat in the same folder.

Below the table: when lehr was first below nanochat's final value. By whole runs it is the shortest run whose saved model is. Within
runs it is an estimate: the own evaluations, moved by the difference between `own` and `same bytes` at the end of the run.

Only an otherwise idle machine gives numbers that mean something: `busy cores` well below the number of threads says it was not.
"""

import argparse
import json
import math
import os
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELPER = Path(__file__).resolve().with_name("time_to_loss_nanochat.py")
COMMIT = "92d63d4"
PACKAGES = ["torch", "numpy", "pyarrow", "rustbpe", "tiktoken", "wandb", "filelock", "requests", "jinja2", "yaml"]

# About 11.5 million weights, which two cores train in ten minutes.
TOKENIZER_FLAGS = ["--vocab-size=8192", "--max-chars=20000000"]
STEP_TOKENS = 4096
TRAIN_FLAGS = ["--depth=4", "--head-dim=64", "--window-pattern=L", "--max-seq-len=256", "--device-batch-size=16"]
TRAIN_FLAGS += [f"--total-batch-size={STEP_TOKENS}", "--core-metric-every=-1", "--sample-every=-1", "--eval-tokens=131072"]
TRAIN_FLAGS += ["--device-type=cpu"]

DOCUMENT_CHARACTERS = 2000
# Of the end of a log, if a process fails.
LOG_LINES = 30


def words(text):
    return [word for word in text.split(",") if word]


def numbers(text):
    return sorted(float(word) for word in words(text))


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --out OUT --nanochat DIR [options] [-- arguments of lehr pretrain]",
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder for text, runs and logs")
    parser.add_argument("--nanochat", type=Path, help=f"a checkout of nanochat at {COMMIT}")
    parser.add_argument("--lehr", default="target/release/lehr", help="path of the program")
    parser.add_argument("--python", default=sys.executable, help="a Python that has nanochat's packages")
    parser.add_argument("--systems", type=words, default=["nanochat", "lehr"], help="nanochat,lehr; `text` only writes the text")
    parser.add_argument("--text", type=Path, default=ROOT / "data" / "pretrain", help="a text file, or a folder of .txt files")
    parser.add_argument("--minutes", type=numbers, default=[2.0, 5.0, 10.0, 20.0], help="of lehr's runs: 2,5,10,20")
    parser.add_argument("--num-iterations", type=int, default=560, help="steps of nanochat")
    parser.add_argument("--eval-every", type=int, default=75, help="steps of nanochat from one evaluation to the next")
    parser.add_argument("--dtype", default="bfloat16", help="nanochat: bfloat16 or float32, its NANOCHAT_DTYPE")
    parser.add_argument("--compiled", type=Path, help="nanochat: folder of code compiled in an earlier run, for a warm start")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--window", type=int, default=256, help="tokens of a window, `same bytes`")
    parser.add_argument("--stride", type=int, default=128, help="tokens from one window to the next, `same bytes`")
    parser.add_argument("--json", type=Path, help="write everything here, anew after each run")
    given, extra = split_at(sys.argv[1:], "--")
    args = parser.parse_args(given)
    args.extra = extra
    unknown = set(args.systems) - {"nanochat", "lehr", "text"}
    if unknown or not args.systems:
        parser.error("--systems: choose from nanochat, lehr and text")
    if "nanochat" in args.systems and args.nanochat is None:
        parser.error(f"--nanochat is missing: a checkout of nanochat at {COMMIT}; or choose --systems lehr")
    if not args.minutes:
        parser.error("--minutes: expected at least one number")
    if not 0 < args.stride < args.window:
        parser.error("--stride: expected 1 or more, and less than --window")
    args.out = args.out.resolve()
    args.compiled = args.compiled and args.compiled.resolve()
    # nanochat runs in its own folder. A link stays a link, because it says which environment a Python belongs to.
    args.python = os.path.abspath(shutil.which(args.python) or args.python)
    return args


def split_at(items, mark):
    at = items.index(mark) if mark in items else len(items)
    return items[:at], items[at + 1 :]


def run(command, log, on_line=lambda seconds, line: None, since=None, **how):
    """Runs a process, tells `on_line` each line with the seconds since `since` or its start, and returns them at its end."""
    since = time.monotonic() if since is None else since
    command = [str(word) for word in command]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf8", errors="replace", **how
        )
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error}")
    with log.open("w", encoding="utf8") as file:
        try:
            for line in process.stdout:
                seconds = time.monotonic() - since
                file.write(line)
                file.flush()
                on_line(seconds, line)
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
    seconds = time.monotonic() - since
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {process.returncode}. The end of {log}:\n\n{end_of(log)}")
    return seconds


def end_of(log):
    return "\n".join(log.read_text(encoding="utf8").splitlines()[-LOG_LINES:])


def last_object(log):
    """The last JSON object of a log. Libraries may print more after it."""
    lines = reversed(log.read_text(encoding="utf8").splitlines())
    found = next(filter(None, map(as_object, lines)), None)
    if found is None:
        sys.exit(f"{log} has no JSON object:\n\n{end_of(log)}")
    return found


def as_object(line):
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def progress(text):
    print(text, file=sys.stderr, flush=True)


def processor_seconds():
    """Of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def documents(path):
    """Cuts text files at blank lines into documents of more than DOCUMENT_CHARACTERS, if they have as many."""
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            text = file.read_text(encoding="utf8")
        except (OSError, UnicodeDecodeError) as error:
            sys.exit(f"--text: {file} cannot be read: {error}")
        current = ""
        for paragraph in text.split("\n\n"):
            current += paragraph + "\n\n"
            if len(current) > DOCUMENT_CHARACTERS:
                found.append(current.strip())
                current = ""
        found.append(current.strip())
    return [document for document in found if document]


def prepare(args):
    """Writes the text of both and returns its sizes."""
    all_ = documents(args.text)
    random.seed(0)
    random.shuffle(all_)
    n = len(all_) // 20
    if n == 0:
        sys.exit(f"--text: {args.text} has {len(all_)} documents, expected at least 20, so that one in twenty is held out")
    for part, found in {"val": all_[:n], "train": all_[n:]}.items():
        (args.out / f"{part}.txt").write_text("\n\n".join(found), encoding="utf8")
        with (args.out / f"{part}.jsonl").open("w", encoding="utf8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in found)
    sizes = [sum(len(text.encode()) for text in found) for found in (all_[n:], all_[:n])]
    return {"documents": len(all_) - n, "bytes": sizes[0], "held_out_documents": n, "held_out_bytes": sizes[1]}


def check_environment(args):
    """Refuses to begin what cannot end well: a minute now saves an hour."""
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        sys.exit(f"--out: {args.out} is not a new or empty folder; every run begins in a new one")
    versions = {}
    if "lehr" in args.systems:
        versions["lehr"] = tell([args.lehr, "--version"], "--lehr").removeprefix("lehr ")
    if "nanochat" in args.systems:
        if not (args.nanochat / "scripts" / "base_train.py").is_file():
            sys.exit(f"--nanochat: {args.nanochat} has no scripts/base_train.py, so it is no checkout of nanochat")
        args.nanochat = args.nanochat.resolve()
        code = "import importlib.util, sys; print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))"
        missing = tell([args.python, "-c", code, *PACKAGES], "--python")
        if missing:
            sys.exit(f"--python: {args.python} lacks packages that nanochat imports: {missing} (yaml is in pyyaml)")
        versions["torch"] = tell([args.python, "-c", "import torch; print(torch.__version__)"], "--python")
        versions["nanochat"] = tell(["git", "-C", args.nanochat, "rev-parse", "HEAD"], "--nanochat")
        if not versions["nanochat"].startswith(COMMIT):
            progress(f"warning: nanochat is at {versions['nanochat']}, and its flags were chosen for {COMMIT}")
    return versions


def tell(command, option):
    """What a short command prints."""
    try:
        result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"{option}: {command[0]} cannot be started: {error}")
    if result.returncode != 0:
        sys.exit(f"{option}: {' '.join(map(str, command))}\nended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout.strip()


class Curve:
    """The evaluations of a run, from the lines that it prints."""

    def __init__(self, name):
        self.name, self.points, self.parameters, self.tokens, self.step_seconds = name, [], None, None, []

    def add(self, seconds, step, bits_per_byte, tokens=None):
        self.points.append({"seconds": seconds, "step": step, "tokens": tokens, "bits_per_byte": bits_per_byte})
        progress(f"{self.name}: step {step} after {seconds:.0f} s, {bits_per_byte:.4f} bits per byte (own evaluation)")

    def nanochat_line(self, seconds, line):
        if found := re.match(r"Step (\d+) \| Validation bpb: (\S+)", line):
            self.tokens = int(found[1]) * STEP_TOKENS
            self.add(seconds, int(found[1]), float(found[2]), self.tokens)
        elif found := re.match(r"step \d+/\d+ .* dt: ([\d.]+)ms", line):
            self.step_seconds.append(float(found[1]) / 1000)
        elif found := re.match(r"total\s*: ([\d,]+)", line):
            self.parameters = int(found[1].replace(",", ""))

    def lehr_line(self, seconds, line):
        event = as_object(line) or {}
        kind = event.get("event")
        if kind == "started":
            self.parameters = event["params"]
        elif kind == "eval":
            self.add(seconds, event["step"], event["eval"]["bits_per_byte"])
        elif kind == "step":
            self.tokens = event["metrics"]["tokens_seen"]
            if self.points and self.points[-1]["step"] == event["metrics"]["step"]:
                self.points[-1]["tokens"] = self.tokens

    def result(self, system, minutes, seconds, used, log):
        if not self.points or None in (self.parameters, self.tokens):
            sys.exit(f"{self.name}: no evaluation, size or number of tokens is to be found in {log}. Its end:\n\n{end_of(log)}")
        result = {"system": system, "minutes": minutes, "seconds": seconds, "busy_cores": used / seconds}
        result |= {"parameters": self.parameters, "tokens": self.tokens, "own": self.points[-1]["bits_per_byte"]}
        return result | {"evaluations": self.points}


def nanochat(args, text):
    """Trains nanochat's tokenizer and model, and scores the model."""
    folder = args.out / "nanochat"
    given = {"NANOCHAT_BASE_DIR": folder, "NANOCHAT_DTYPE": args.dtype, "PYTHONUNBUFFERED": "1", "PYTHONPATH": args.nanochat}
    given |= {"OMP_NUM_THREADS": args.threads, "RAYON_NUM_THREADS": args.threads}
    # By default torch keeps compiled code for the next run, which would then not start cold.
    compiled = args.compiled or folder / "compiled"
    given |= {"TORCHINDUCTOR_CACHE_DIR": compiled, "TRITON_CACHE_DIR": compiled}
    env = os.environ | {name: str(value) for name, value in given.items()}
    how = {"cwd": args.nanochat, "env": env}
    run([args.python, HELPER, "shards", args.out], args.out / "nanochat_shards.log", **how)
    curve, log = Curve("nanochat"), args.out / "nanochat.log"
    start, used = time.monotonic(), processor_seconds()
    tokenizer = [args.python, "-m", "scripts.tok_train", *TOKENIZER_FLAGS]
    tokenizer_seconds = run(tokenizer, args.out / "nanochat_tokenizer.log", since=start, **how)
    progress(f"nanochat: tokenizer after {tokenizer_seconds:.0f} s")
    train = [args.python, "-m", "scripts.base_train", *TRAIN_FLAGS]
    train += [f"--num-iterations={args.num_iterations}", f"--eval-every={args.eval_every}"]
    seconds = run(train, log, curve.nanochat_line, since=start, **how)
    used = processor_seconds() - used
    log_bits = args.out / "nanochat_eval.log"
    how["env"] = env | {"NANOCHAT_DTYPE": "float32"}
    run([args.python, HELPER, "bits", args.out, "val", args.window, args.stride], log_bits, **how)
    found = last_object(log_bits)
    check_scored(found, text, log_bits)
    log_beginnings = args.out / "nanochat_beginnings.log"
    run([args.python, HELPER, "beginnings", args.out], log_beginnings, **how)
    run([args.python, HELPER, "bits", args.out, "beginnings", args.window, args.stride], log_beginnings, **how)
    found["beginnings"] = bits_per_byte(last_object(log_beginnings))
    found["all_nll"], found["rest_nll"] = found["nll"], found["nll"] - found["first_nll"]
    found["rest_bytes"] = found["bytes"] - found["first_bytes"]
    result = curve.result("nanochat", None, seconds, used, log)
    result |= {"tokenizer_seconds": tokenizer_seconds, "commands": [tokenizer, train], "dtype": args.dtype}
    # The first step compiles.
    result |= {"first_step_seconds": curve.step_seconds[0], "step_seconds": statistics.median(curve.step_seconds)}
    return result | same_bytes(found, text)


def lehr(args, text, minutes):
    """Pre-trains with lehr in so many minutes, and scores the model."""
    name = f"lehr_{minutes:g}"
    folder, log, log_bits = args.out / name, args.out / f"{name}.log", args.out / f"{name}_eval.log"
    common = ["--device", "cpu", "--threads", args.threads, "--json"]
    train = [args.lehr, "pretrain", "--data", args.out / "train.txt", "--minutes", f"{minutes:g}", "--out", folder, *common]
    train += ["--set", f"data.validation_path={args.out / 'val.txt'}", *args.extra]
    curve, used = Curve(f"lehr, {minutes:g} minutes"), processor_seconds()
    seconds = run(train, log, curve.lehr_line)
    used = processor_seconds() - used
    score = [args.lehr, "eval", folder, "--dtype", "f32", *common, "--window", args.window, "--stride", args.stride]
    run([*score, "--data", args.out / "val.jsonl"], log_bits)
    found = last_object(log_bits)
    check_scored(found, text, log_bits)
    beginnings = args.out / "beginnings.jsonl"
    if beginnings.exists():
        log_beginnings = args.out / f"{name}_beginnings.log"
        run([*score, "--data", beginnings], log_beginnings)
        found["beginnings"] = bits_per_byte(last_object(log_beginnings))
    found["rest_nll"], found["rest_bytes"] = found["nll"], found["bytes"]
    found["all_nll"] = found["nll"]
    if found["bytes"] < text["held_out_bytes"]:
        found["all_nll"] += found["documents"] * math.log(vocabulary_size(folder))
    result = curve.result("lehr", minutes, seconds, used, log)
    return result | {"commands": [[str(word) for word in train]]} | same_bytes(found, text)


def bits_per_byte(found):
    return found["nll"] / math.log(2) / found["bytes"]


def vocabulary_size(run_folder):
    """Number of token ids, as the run's checkpoints say."""
    configs = sorted(run_folder.glob("checkpoints/*/config.json"))
    if not configs:
        sys.exit(f"{run_folder} has no checkpoint with a config.json")
    return json.loads(configs[0].read_text(encoding="utf8"))["vocab_size"]


def check_scored(found, text, log):
    """Refuses an evaluation of other text."""
    if found["documents"] != text["held_out_documents"] or found.get("not_scored") or not 0 < found["bytes"] <= text["held_out_bytes"]:
        sys.exit(f"{log}: scored other text than the held-out {text}:\n{found}")


def same_bytes(found, text):
    bits = {"all": (found["all_nll"], text["held_out_bytes"]), "rest": (found["rest_nll"], found["rest_bytes"])}
    bits = {name: nats / math.log(2) / n_bytes for name, (nats, n_bytes) in bits.items()}
    return {"same_bytes": bits["all"], "rest": bits["rest"], "beginnings": found.pop("beginnings", None), "evaluation": found}


def table(results):
    head = ["system", "minutes asked", "seconds", "busy cores", "weights", "tokens seen"]
    head += ["own bits per byte", "same bytes", "rest", "beginnings"]
    rows = []
    for found in results:
        row = [found["system"], "" if found["minutes"] is None else f"{found['minutes']:g}", f"{found['seconds']:.0f}"]
        row += [f"{found['busy_cores']:.2f}", f"{found['parameters']:,}", f"{found['tokens']:,}"]
        values = [found[key] for key in ["own", "same_bytes", "rest", "beginnings"]]
        rows.append(row + ["" if value is None else f"{value:.4f}" for value in values])
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] + ["---:"] * (len(head) - 1), *rows])


def crossing(results):
    """When lehr first went below nanochat's final values, in a list of sentences and as numbers."""
    peers = [found for found in results if found["system"] == "nanochat"]
    ours = sorted((found for found in results if found["system"] == "lehr"), key=lambda found: found["seconds"])
    if not peers or not ours:
        return ["No comparison: it takes a run of each system."], {}
    peer, sentences, ratios = peers[0], [], {}
    for key, name in {"same_bytes": "Same bytes", "rest": "Rest"}.items():
        runs = [(found["seconds"], found[key]) for found in ours]
        text, ratios[key] = below(runs, (peer["seconds"], peer[key]), "lehr's first run that ends below took")
        sentences.append(f"{name}: {text}")
    points = sorted(point for found in ours for point in moved(found))
    goal = peer["evaluations"][-1]["seconds"], peer["same_bytes"]
    text, ratios["within_runs"] = below(points, goal, "lehr was first below, in any run, after")
    return [*sentences, f"Same bytes within runs, estimated: {text}"], ratios


def moved(found):
    """The curve of a run by its own evaluations, moved so that it ends with the value for the same bytes."""
    by = found["same_bytes"] - found["own"]
    return [(point["seconds"], point["bits_per_byte"] + by) for point in found["evaluations"]]


def below(points, goal, when):
    """What there is to say about the first of `points` (seconds, bits) that is below `goal`."""
    seconds, bits = goal
    text = f"nanochat ends with {bits:.4f} after {seconds:.0f} s; "
    first = next((point for point in points if point[1] < bits), None)
    if first is None:
        best = min(points, key=lambda point: point[1])
        return f"{text}lehr never went below it: its best is {best[1]:.4f} after {best[0]:.0f} s.", None
    ratio = seconds / first[0]
    found = {"lehr_seconds": first[0], "lehr_bits_per_byte": first[1], "nanochat_seconds": seconds, "ratio": ratio}
    return f"{text}{when} {first[0]:.0f} s ({first[1]:.4f}). nanochat's time is **{ratio:.2f}** times as long.", found


def processor():
    """The name of the processor, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main():
    args = arguments()
    about = {"versions": check_environment(args), "processor": processor(), "threads": args.threads}
    args.out.mkdir(parents=True, exist_ok=True)
    text = about["text"] = prepare(args)
    about |= {"window": args.window, "stride": args.stride, "extra": args.extra, "compiled": args.compiled}
    progress(f"{args.out}: {text['documents']} documents of {text['bytes']:,} bytes, "
             f"{text['held_out_documents']} of {text['held_out_bytes']:,} held out")
    jobs = [lambda: nanochat(args, text)] if "nanochat" in args.systems else []
    if "lehr" in args.systems:
        jobs += [lambda minutes=minutes: lehr(args, text, minutes) for minutes in args.minutes]
    results = []
    for job in jobs:
        results.append(job())
        sentences, ratios = crossing(results)
        if args.json:
            everything = about | {"results": results, "below": ratios}
            args.json.write_text(json.dumps(everything, indent=1, default=str) + "\n", encoding="utf8")
    if results:
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        print(f"{versions}; {about['processor']}, {args.threads} threads.\n\n{table(results)}\n")
        print("\n".join(f"- {sentence}" for sentence in sentences))


if __name__ == "__main__":
    main()
