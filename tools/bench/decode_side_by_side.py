#!/usr/bin/env python3
"""Generation side by side with llama.cpp: the same GGUF file, threads and lengths, in turn.

    python tools/bench/decode_side_by_side.py MODEL.gguf ... [--rounds 5] [--threads 2]
        [--prompt 512] [--new 128] [--lehr target/release/lehr]

Needs llama-cpp-python, built for this machine:
    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
Every round is a process of its own for each program. Prints medians and the ratio lehr / llama.cpp.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time


def llama(model, prompt, new, threads):
    """Tokens per second of llama.cpp: a prompt of `prompt` ids, then `new` greedy tokens."""
    import llama_cpp
    import numpy as np

    context = prompt + new + 8
    loaded = llama_cpp.Llama(
        model, n_ctx=context, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
        verbose=False,
    )
    n_vocab = loaded.n_vocab()
    ids = [(7 + 13 * i) % min(n_vocab, 30000) for i in range(prompt)]
    # Touches the memory, as lehr's uncounted first run does.
    loaded.eval(ids)
    loaded.eval(ids[:4])
    loaded.reset()
    loaded._ctx.kv_cache_clear() if hasattr(loaded._ctx, "kv_cache_clear") else None
    start = time.perf_counter()
    loaded.eval(ids)
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(new):
        logits = llama_cpp.llama_get_logits_ith(loaded._ctx.ctx, -1)
        loaded.eval([int(np.ctypeslib.as_array(logits, shape=(n_vocab,)).argmax())])
    decode = time.perf_counter() - start
    print(json.dumps({"prefill_tok_s": prompt / prefill, "decode_tok_s": new / decode}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--lehr", default="target/release/lehr")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return llama(args.models[0], args.prompt, args.new, args.threads)
    sizes = ["--prompt", str(args.prompt), "--new", str(args.new), "--threads", str(args.threads)]
    print("| model | prefill lehr | llama.cpp | ratio | decode lehr | llama.cpp | ratio | GB/s |")
    print("|---|---|---|---|---|---|---|---|")
    for model in args.models:
        ours, theirs = [], []
        for _ in range(args.rounds):
            command = [args.lehr, "bench", "decode", model, *sizes, "--rounds", "1", "--json"]
            ours.append(last_json(command))
            theirs.append(last_json([sys.executable, __file__, model, *sizes, "--one"]))
        row = [model.rsplit("/", 1)[-1]]
        for key in ("prefill_tok_s", "decode_tok_s"):
            a, b = (statistics.median(r[key] for r in runs) for runs in (ours, theirs))
            row += [f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}"]
        row.append(f"{statistics.median(r['gb_s'] for r in ours):.1f}")
        print("| " + " | ".join(row) + " |", flush=True)


def last_json(command):
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(lines[-1])


if __name__ == "__main__":
    main()
