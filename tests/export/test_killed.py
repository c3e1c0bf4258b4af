"""An export that is killed leaves nothing under the name of its output, and the same command then writes it whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from laconic.cli.main import status
from laconic.compress import Compress
from laconic.methods import Rtn
from laconic.store import save
from tests.export.gguf import models

LIBRARIES = {
    "gguf": ("gguf",),
    "compressed-tensors": ("compressed_tensors",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
}
MOMENTS = {
    "the first file is opened": ("open", ".partial-"),
    "the card is opened": ("open", "README.md"),
    "the output gets its name": ("os.rename", ".partial-"),
}
"""The event of Python before which the process is killed, and a part of the path."""
PROGRAM = """
import os, signal, sys

event, part = sys.argv[1:3]

def kill(name, arguments):
    if name == event and part in str(arguments[0]) and (name != "open" or set(arguments[1] or "") & set("wx")):
        os.kill(os.getpid(), signal.SIGKILL)

from laconic.cli.main import status

sys.addaudithook(kill)
sys.exit(status(sys.argv[3:]))
"""
MODEL, OUTPUT = "model", "served"


@pytest.mark.slow
@pytest.mark.parametrize("target", LIBRARIES)
def test_a_killed_export_leaves_no_output(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in LIBRARIES[target]:
        pytest.importorskip(library)
    lm = models.model("llama")
    Compress(method=Rtn(bits=4, group_size=32, symmetric=True)).apply(lm, None)
    save(lm, tmp_path / MODEL)
    arguments = ["export", MODEL, "--to", target, "-o", OUTPUT]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for moment, (event, part) in MOMENTS.items():
        command = [sys.executable, "-c", PROGRAM, event, part, *arguments]
        child = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert child.returncode == -signal.SIGKILL, (moment, child.stderr)
        left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
        assert left == {MODEL}, moment
        # Each run was killed while it wrote.
        assert [path for path in tmp_path.iterdir() if ".partial-" in path.name], moment
    monkeypatch.chdir(tmp_path)
    assert status(arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {MODEL, OUTPUT}
    assert (tmp_path / OUTPUT / "README.md").is_file()
