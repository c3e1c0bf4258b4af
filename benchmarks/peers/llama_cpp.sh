#!/usr/bin/env bash
# Makes an environment with llama.cpp in the folder FOLDER: node-llama-cpp brings it built. It needs Node.js 20 or later.
#
#     benchmarks/peers/llama_cpp.sh FOLDER
#     LACONIC_LLAMA_CPP=FOLDER pytest -m engines
set -euo pipefail
mkdir -p "$1"
cp "$(dirname "$0")/llama_cpp.mjs" "$1/llama_cpp.mjs"
cd "$1"
[ -f package.json ] || npm init --yes >/dev/null
npm install --save-exact --no-audit --no-fund node-llama-cpp@3.21.1
node llama_cpp.mjs </dev/null
