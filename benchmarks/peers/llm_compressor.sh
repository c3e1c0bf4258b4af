#!/usr/bin/env bash
# Makes the environment that llm-compressor is measured in, at FOLDER; its Python is FOLDER/bin/python.
#     benchmarks/peers/llm_compressor.sh FOLDER
#     python -m benchmarks sequential --peer FOLDER/bin/python
set -euo pipefail
folder=${1:?the folder of the environment}
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 llmcompressor==0.14.0.1 safetensors
