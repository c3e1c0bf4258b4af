"""Each verb says in one sentence that a model cannot run although its class builds it, and writes nothing."""

import json
import shutil
from pathlib import Path

import pytest

from laconic.cli.main import status
from tests.cli.printed import Output, complaint

# No row that is read here has so many tokens.
PIECES = 13


@pytest.fixture(scope="module")
def broken(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"chunk_size_feed_forward": PIECES}))
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "evaluate MODEL --batch 1 --length 8",
        "evaluate MODEL --tasks fidelity:TEXTS --against GOOD",
        "evaluate GOOD --tasks fidelity:TEXTS --against MODEL",
        "evaluate MODEL --batch 1 --length 8 --runtime compile",
        "inspect MODEL --data TEXTS -o OUT",
        "compress MODEL --method wanda --keep 0.5 --data TEXTS -o OUT",
        "compress MODEL --method gptq --keep 0.5 --data TEXTS --sequential -o OUT",
        "compress MODEL --method wanda --keep 0.5 --data TEXTS --anchored -o OUT",
        "compress MODEL --method shorten:drop=1 --data TEXTS -o OUT",
        "compress MODEL --method narrow:heads=0.5 --data TEXTS -o OUT",
        "compress MODEL --method correct --data TEXTS -o OUT",
        "compress MODEL --method svd --keep 0.5 -o OUT",
        "compress GOOD --method student:model=MODEL -o OUT",
    ],
)
@pytest.mark.slow
def test_the_sentence_names_the_folder_and_what_to_look_at(
    capsys: Output, broken: Path, tiny_model: Path, texts: Path, tmp_path: Path, line: str
) -> None:
    stands_for = {"MODEL": broken, "GOOD": tiny_model, "TEXTS": texts, "OUT": tmp_path / "out"}
    for name, path in stands_for.items():
        line = line.replace(name, str(path))
    said = complaint(capsys, *line.split())
    assert "has to be a multiple of the chunk size 13; look at " in said
    assert "config.json" in said and str(broken) in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_what_cannot_run_is_no_fault_of_the_exporter(
    capsys: Output, broken: Path, tmp_path: Path, runtime: str
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip(runtime)
    said = complaint(capsys, "export", broken, "--to", runtime, "-o", tmp_path / "out")
    assert f"The model '{broken}' cannot run 1 row of 8 tokens" in said
    assert not list(tmp_path.iterdir())


def test_what_needs_no_run_is_done(capsys: Output, broken: Path, tmp_path: Path) -> None:
    assert status(["inspect", str(broken), "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert (tmp_path / "out").is_dir()
