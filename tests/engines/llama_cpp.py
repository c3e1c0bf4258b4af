"""llama.cpp in an environment that `benchmarks/peers/llama_cpp.sh` made; `LACONIC_LLAMA_CPP` names its folder."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = os.environ.get("LACONIC_LLAMA_CPP", "")


def ask(file: Path, **question: Any) -> dict[str, Any]:
    """The answer of llama.cpp about a file, as `benchmarks/peers/llama_cpp.mjs` describes it."""
    if not FOLDER or not (Path(FOLDER) / "llama_cpp.mjs").is_file():
        pytest.skip("no llama.cpp; make it with benchmarks/peers/llama_cpp.sh, and set LACONIC_LLAMA_CPP")
    asked = json.dumps({"model": str(file.resolve()), "context": 64, **question})
    command = ["node", "llama_cpp.mjs"]
    done = subprocess.run(command, cwd=FOLDER, input=asked, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
