#!/usr/bin/env python3
"""Perplexity of one text side by side with llama.cpp: the same GGUF file, the same windows.

    python tools/bench/perplexity_side_by_side.py MODEL.gguf --data TEXT [--bytes 100000]
        [--window 512] [--stride 256] [--threads 2] [--lehr target/release/lehr]

Windows and scored tokens are those of `lehr eval`: each token once, by the first window that has it.
Needs llama-cpp-python; see decode_side_by_side.py.
"""
import argparse
import json
import math
import subprocess
import tempfile

import llama_cpp
import numpy as np


def llama(args, text):
    loaded = llama_cpp.Llama(
        args.model, n_ctx=args.window, n_batch=args.window, n_threads=args.threads,
        n_threads_batch=args.threads, logits_all=True, verbose=False,
    )
    ids = loaded.tokenize(text, add_bos=False, special=False)
    before = loaded.tokenize(b"", add_bos=True)
    room, scored, nll, count, at = args.window - len(before), 0 if before else 1, 0.0, 0, 0
    while scored < len(ids):
        end = min(at + room, len(ids))
        run = before + ids[at:end]
        loaded.reset()
        loaded.eval(run)
        n_new = end - scored
        rows = np.asarray(loaded.scores[len(run) - n_new - 1:len(run) - 1], dtype=np.float64)
        top = rows.max(-1)
        log_sum = top + np.log(np.exp(rows - top[:, None]).sum(-1))
        nll += float((log_sum - rows[np.arange(n_new), run[-n_new:]]).sum())
        count, scored, at = count + n_new, end, at + args.stride
    return math.exp(nll / count), count


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--bytes", type=int, default=100_000)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lehr", default="target/release/lehr")
    args = parser.parse_args()
    with open(args.data, "rb") as file:
        # Whole characters only.
        text = file.read(args.bytes).decode("utf-8", "ignore").encode()
    with tempfile.NamedTemporaryFile(suffix=".txt") as sample:
        sample.write(text)
        sample.flush()
        command = [args.lehr, "eval", args.model, "--data", sample.name, "--json"]
        command += ["--window", str(args.window), "--stride", str(args.stride)]
        command += ["--threads", str(args.threads)]
        ours = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    theirs, count = llama(args, text)
    ratio = ours["perplexity"] / theirs
    print(f"{args.model}: lehr {ours['perplexity']:.4f} ({ours['tokens']} tokens, "
          f"{ours['bits_per_byte']:.4f} bits per byte), llama.cpp {theirs:.4f} ({count} tokens), "
          f"difference {100 * (ratio - 1):+.3f} %")


if __name__ == "__main__":
    main()
