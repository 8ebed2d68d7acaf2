#!/usr/bin/env bash
# Runs the tests of the CPU kernels for ARM on an x86-64 machine, by emulation: NEON and bfmmla against double precision. It proves
# results and says nothing of speed. On Debian it needs
#
#     apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
#     rustup target add aarch64-unknown-linux-gnu
#
# Arguments go to the test program: scripts/arm-check.sh bf16 runs the tests with bf16 in their names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for program in aarch64-linux-gnu-gcc qemu-aarch64; do
    if ! command -v "$program" >/dev/null; then
        echo "$program is not on the path; the head of this script says what to install" >&2
        exit 2
    fi
done
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu"
exec cargo test --release --target aarch64-unknown-linux-gnu -p lehr-kernels --lib -- "$@"
