#!/usr/bin/env bash
# Fetches the files that some tests compare with and that are too large to commit: the vocabularies of llama.cpp with the ids
# it expects. They come from a pinned package of PyPI, and its SHA-256 is checked.
#
#     scripts/get-fixtures.sh DEST
#     LEHR_FIXTURES=DEST cargo test --release --workspace
#
# Needs pip. Does nothing where DEST is complete.
set -euo pipefail
dest="${1:?usage: scripts/get-fixtures.sh DEST}"
package=llama-cpp-python version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e

if [ -e "$dest/complete-$version" ]; then
    exit 0
fi
mkdir -p "$dest"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# Only this package has to be a source archive: its build tools may be wheels, which pip asks about.
python3 -m pip download --quiet --no-deps --no-binary "$package" --disable-pip-version-check --dest "$work" "$package==$version"
archive="$work/llama_cpp_python-$version.tar.gz"
echo "$sha256  $archive" | sha256sum --check --quiet
tar -xzf "$archive" -C "$work" --wildcards '*/vendor/llama.cpp/models/ggml-vocab-*'
mv "$work"/llama_cpp_python-*/vendor/llama.cpp/models/ggml-vocab-* "$dest"
touch "$dest/complete-$version"
