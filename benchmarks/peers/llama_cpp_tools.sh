#!/usr/bin/env bash
# Builds tools of llama.cpp in FOLDER/bin: llama-quantize, llama-imatrix, llama-perplexity and llama-bench.
#
#     benchmarks/peers/llama_cpp.sh NODE_FOLDER
#     benchmarks/peers/llama_cpp_tools.sh NODE_FOLDER FOLDER
#
# NODE_FOLDER has node-llama-cpp, which brings the libraries of llama.cpp built, and the sources of the same release as a
# git bundle. So only the tools are compiled, and they compute with the kernels that the tests of engines run. It needs
# git and a C++ compiler.
set -euo pipefail
node=$(realpath "$1")/node_modules
libraries=$node/@node-llama-cpp/linux-x64/bins/linux-x64
mkdir -p "$2/bin"
cd "$2"
[ -d source ] || git clone --quiet "$node/node-llama-cpp/llama/gitRelease.bundle" source
# llama.cpp looks for its kernels beside the program.
ln -sf "$libraries"/*.so bin/
cd source
for tool in quantize imatrix perplexity llama-bench; do
    program=../bin/llama-${tool#llama-}
    [ -x "$program" ] && continue
    c++ -O2 -std=c++17 -Iinclude -Iggml/include -Icommon -Ivendor -Itools/$tool tools/$tool/*.cpp -o "$program" \
        ../bin/libllama-common.so ../bin/libllama.v*.so ../bin/libggml.v*.so ../bin/libggml-base.so \
        -Wl,-rpath,'$ORIGIN' -pthread
done
../bin/llama-perplexity --version
