"""Named entities: `lehr finetune` beside transformers with the same model and budget, and a linear-chain CRF, on held-out tests.

    pip install torch transformers seqeval sklearn-crfsuite
    cargo build --release -p lehr
    python tools/bench/entities.py --model all-MiniLM-L6-v2 --data wnut17 --out ../entities

DATA is a folder with files of columns (CoNLL) for training, validation and test. lehr fits its recipe to the data (`lehr finetune`,
nothing set but the seed). transformers trains the same encoder (AutoModelForTokenClassification) for the same number of passes and
tokens a step, with AdamW, linear decay, the rate of lehr's recipe, labels at the first token of a word; eager or --compile, in f32 or
--bf16 autocast. Both are scored by seqeval on the test file, and the wall clock counts from start to saved model. The CRF (sklearn-crfsuite, L-BFGS,
c1 = c2 = 0.1) has the word, its shape, prefixes and suffixes, and those of its neighbours.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import time
from pathlib import Path

from seqeval.metrics import f1_score

ROOT = Path(__file__).resolve().parents[2]
# 97.5 % points of Student's t, by the number of seeds.
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lehr", type=Path, default=ROOT / "target/release/lehr")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--method", default="full", help="that of lehr finetune")
    parser.add_argument("--peers", nargs="*", default=["transformers", "crf"])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    parts = {part: sentences(file_of(args.data, part)) for part in ("train", "dev", "test")}
    print("| | F1 of the test set | seconds |\n|---|---:|---:|")
    runs = [lehr(args, seed) for seed in args.seeds]
    row("lehr finetune", runs)
    if "transformers" in args.peers:
        recipe = (args.out / f"lehr-{args.seeds[0]}/recipe.toml").read_text()
        row("transformers", [transformers(args, seed, parts, recipe) for seed in args.seeds])
    if "crf" in args.peers:
        row("CRF", [crf(parts)])


def file_of(folder, part):
    names = {"train": ["train"], "dev": ["dev", "valid", "validation"], "test": ["test"]}[part]
    return next(path for path in sorted(folder.iterdir()) if any(name in path.name.lower().split(".") for name in names))


def sentences(path):
    """Lists of (words, tags); also records with a text and a tag for each character."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [([c for c in row["text"] if not c.isspace()], row["tags"].split()) for row in rows]
    found, words, tags = [], [], []
    for line in [*path.read_text().splitlines(), ""]:
        columns = line.split("\t") if "\t" in line else line.split()
        if columns and line.strip():
            words.append(columns[0])
            tags.append(columns[-1])
        elif words:
            found.append((words, tags))
            words, tags = [], []
    return found


def row(name, runs):
    scores, seconds = [100 * score for score, _ in runs], [s for _, s in runs]
    text = f"{statistics.mean(scores):.2f}"
    if len(scores) > 1:
        text += f" ± {STUDENT[len(scores)] * statistics.stdev(scores) / math.sqrt(len(scores)):.2f}"
    print(f"| {name} | {text} | {statistics.mean(seconds):.0f} |", flush=True)


def lehr(args, seed):
    out = args.out / f"lehr-{seed}"
    subprocess.run(["rm", "-rf", out])
    command = [args.lehr, "finetune", "--model", args.model, "--data", args.data, "--seed", seed, "--out", out, "--plain", "--method", args.method]
    start = time.monotonic()
    subprocess.run([os.fspath(word) if isinstance(word, Path) else str(word) for word in command], check=True, capture_output=True)
    seconds = time.monotonic() - start
    found = subprocess.run([args.lehr, "eval", out, "--data", file_of(args.data, "test"), "--json"], check=True, capture_output=True, text=True)
    return json.loads(found.stdout)["all"]["f1"], seconds


def setting(recipe, key):
    return float(next(line.split("=")[1] for line in recipe.splitlines() if line.startswith(f"{key} =")))


def transformers(args, seed, parts, recipe):
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    torch.manual_seed(seed)
    order = random.Random(seed)
    start = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    labels = sorted({tag for _, tags in parts["train"] for tag in tags}, key=lambda tag: (tag != "O", tag[2:], tag))
    model = AutoModelForTokenClassification.from_pretrained(args.model, num_labels=len(labels)).train()
    forward = torch.compile(model) if args.compile else model
    steps, length = int(setting(recipe, "steps")), int(setting(recipe, "seq_len"))
    tokens = int(setting(recipe, "batch_size")) * length * int(setting(recipe, "grad_accumulation"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting(recipe, "lr"), weight_decay=0.01)
    warmup = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / warmup, max(0.0, (steps - s) / max(steps - warmup, 1))))
    encoded = [encode(tokenizer, words, tags, labels, length) for words, tags in parts["train"]]
    queue = []
    for _ in range(steps):
        batch, n = [], 0
        while not batch or n + len(queue[-1][0]) <= tokens:
            queue = queue or order.sample(encoded, len(encoded))
            batch.append(queue.pop())
            n += len(batch[-1][0])
            queue = queue or order.sample(encoded, len(encoded))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = forward(**padded(torch, batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(args.out / f"transformers-{seed}")
    seconds = time.monotonic() - start
    model.eval()
    found = []
    with torch.no_grad():
        for words, tags in parts["test"]:
            ids, targets = encode(tokenizer, words, range(len(words)), None, 512)
            best = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
            by_word = {word: labels[best[at]] for at, word in enumerate(targets) if word >= 0}
            found.append([by_word.get(word, "O") for word in range(len(words))])
    return f1_score([tags for _, tags in parts["test"]], found), seconds


def encode(tokenizer, words, tags, labels, length):
    """Ids, and for the first token of each word its label (or, without labels, its value in `tags`); else -100."""
    tags = list(tags)
    text = tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=length)
    targets, last = [], None
    for word in text.word_ids():
        is_first = word is not None and word != last
        targets.append((labels.index(tags[word]) if labels else tags[word]) if is_first else -100)
        last = word
    return text["input_ids"], targets


def padded(torch, batch):
    width = max(len(ids) for ids, _ in batch)
    fill = lambda values, value: torch.tensor([row + [value] * (width - len(row)) for row in values])
    ids = [ids for ids, _ in batch]
    return {"input_ids": fill(ids, 0), "attention_mask": fill([[1] * len(row) for row in ids], 0), "labels": fill([t for _, t in batch], -100)}


def crf(parts):
    import sklearn_crfsuite

    start = time.monotonic()
    model = sklearn_crfsuite.CRF(algorithm="lbfgs", c1=0.1, c2=0.1, max_iterations=100, all_possible_transitions=True)
    model.fit([features(words) for words, _ in parts["train"]], [tags for _, tags in parts["train"]])
    seconds = time.monotonic() - start
    found = model.predict([features(words) for words, _ in parts["test"]])
    return f1_score([tags for _, tags in parts["test"]], found), seconds


def features(words):
    def of(word):
        shape = "".join("X" if c.isupper() else "x" if c.islower() else "d" if c.isdigit() else c for c in word)
        return {"word": word.lower(), "shape": shape, "prefix": word[:3].lower(), "suffix": word[-3:].lower(), "suffix2": word[-2:].lower()}

    rows = [of(word) for word in words]
    result = []
    for at in range(len(words)):
        own = {"bias": 1.0, **rows[at]}
        for step in (-2, -1, 1, 2):
            if 0 <= at + step < len(words):
                own |= {f"{step}:{key}": value for key, value in rows[at + step].items()}
            else:
                own[f"{step}:none"] = True
        result.append(own)
    return result


if __name__ == "__main__":
    main()
