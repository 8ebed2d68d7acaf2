#!/usr/bin/env bash
# Fetches NVIDIA's run-time compiler (NVRTC), which compiles all GPU kernels without a GPU. It comes from a pinned package of PyPI,
# whose SHA-256 is checked, and has a licence of its own that allows its use, not its distribution: it does not belong into this repository.
#
#     scripts/get-cuda.sh DEST
#     LEHR_CUDA_LIBS=DEST lehr doctor --compile sm_80,sm_89,sm_90a
#
# Needs pip, on Linux. Does nothing where DEST is complete.
set -euo pipefail
dest="${1:?usage: scripts/get-cuda.sh DEST}"
version=13.0.88
case "$(uname -m)" in
    x86_64) platform=manylinux2010_x86_64 sha256=ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575 ;;
    *) echo "there is no pinned package for $(uname -m)" >&2; exit 1 ;;
esac

if [ -e "$dest/complete-$version" ]; then
    exit 0
fi
mkdir -p "$dest"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --no-deps --only-binary :all: --platform "$platform" --disable-pip-version-check \
    --dest "$work" "nvidia-cuda-nvrtc==$version"
wheel="$(ls "$work"/nvidia_cuda_nvrtc-*.whl)"
echo "$sha256  $wheel" | sha256sum --check --quiet
python3 -m zipfile -e "$wheel" "$work"
mv "$work"/nvidia/cu13/lib/*.so.* "$dest"
touch "$dest/complete-$version"
