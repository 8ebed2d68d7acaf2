#!/usr/bin/env bash
# Checks and measures lehr on a machine with an NVIDIA GPU, within a fixed time. The machine needs the driver and a Python 3 with
# PyTorch for CUDA; it needs no Rust, so the programs are built elsewhere and carried:
#
#     cargo build --release -p lehr
#     cargo test --release -p lehr-tensor --lib --no-run        # prints where the test program is
#     scripts/gpu-check.sh LEHR_BINARY [OP_TESTS_BINARY] [--out DIR] [--minutes 8]
#
# Prints one table; OUT (gpu-check-DATE unless --out names it) gets the table, all measurements and the log of every command. The exit
# code is 1 if results are wrong, and 0 if they are right, however slow. docs/benchmarks.md says what the rows mean; the work is done by
# tools/bench/gpu_check.py. PYTHON names another Python than python3.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
if ! command -v "$python" >/dev/null; then
    echo "$python is not on the path: this check is a Python program, and PyTorch is what lehr is compared with" >&2
    exit 2
fi
exec "$python" "$root/tools/bench/gpu_check.py" "$@"
