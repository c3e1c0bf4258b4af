#!/usr/bin/env bash
# Makes the environment of OpenVINO GenAI, ONNX Runtime GenAI and optimum at FOLDER; its Python is FOLDER/bin/python.
#     benchmarks/peers/genai.sh FOLDER
#     LACONIC_GENAI=FOLDER/bin/python python -m pytest -m engines tests/engines/test_genai.py
set -euo pipefail
folder=${1:?the folder of the environment}
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 \
    openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0 onnxruntime-genai==0.18.0 optimum-intel==2.2.0
# The build on PyPI is for another build of torch, and nothing here needs it.
"$folder/bin/pip" uninstall --quiet --disable-pip-version-check --yes torchvision
