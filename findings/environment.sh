# Sourced by each finding with its pinned packages: makes a virtual environment in a temporary folder, prints the versions
# that are in it, and goes there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH" PYTHONNOUSERSITE=1 HF_HUB_OFFLINE=1
unset PYTHONPATH
pip install --quiet --disable-pip-version-check "$@"
python - "$@" <<'PY'
import sys
from importlib.metadata import version

print(*(f"{name} {version(name)}" for name in (pin.partition("==")[0] for pin in sys.argv[1:])), sep=", ")
PY
cd "$folder"
