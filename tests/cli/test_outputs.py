"""The place of an output is tried before any work."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.cli.printed import SVD, Output, complaint


def writers(model: Path, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """Every verb that writes to a folder, by its name."""
    (tmp_path / "recipe.yaml").write_text(f"model: {model}\nsteps: [compress: {{method: svd, keep: 0.5}}]\n")
    axes = {"model": [str(model)], "method": ["svd"], "keep": [0.5]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"axes": axes, "cost": {"batch": [1], "length": [4]}}))
    (tmp_path / "studied" / "cells").mkdir(parents=True, exist_ok=True)
    return {
        "compress": ("compress", model, *SVD),
        "run": ("run", tmp_path / "recipe.yaml"),
        "export": ("export", model, "--to", "openvino"),
        "inspect": ("inspect", model),
        "study": ("study", tmp_path / "study.yaml"),
        "report": ("report", tmp_path / "studied"),
        "demo": ("demo",),
    }


WRITERS = pytest.mark.parametrize("verb", ["compress", "run", "export", "inspect", "study", "report", "demo"])


@WRITERS
def test_an_output_without_a_name_is_refused(verb: str, capsys: Output, tiny_model: Path, tmp_path: Path) -> None:
    said = complaint(capsys, *writers(tiny_model, tmp_path)[verb], "-o", "")
    assert "--output" in said and "folder" in said and said.endswith("got ''.")


@WRITERS
def test_an_output_that_cannot_be_is_refused_before_a_model_is_loaded(
    verb: str, capsys: Output, tiny_model: Path, tmp_path: Path
) -> None:
    # Weights that cannot be read tell whether they were.
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").write_bytes(b"")
    command = writers(model, tmp_path)[verb]
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in ("/proc/out", tmp_path / "file" / "out", tmp_path / "loop" / "out", tmp_path / ("n" * 245)):
        assert "cannot be made" in complaint(capsys, *command, "-o", place)
    if verb not in ("demo", "report"):
        assert "the folder of the model" in complaint(capsys, *command, "-o", model / "out")
        assert "the folder of the model" in complaint(capsys, *command, "-o", model)


def test_an_existing_output_is_refused(capsys: Output, tiny_model: Path, tmp_path: Path) -> None:
    for verb in (("compress", tiny_model, *SVD), ("inspect", tiny_model), ("demo",)):
        assert "exists already" in complaint(capsys, *verb, "-o", tmp_path)
