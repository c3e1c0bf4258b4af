"""A plan of a streamed model leaves the solutions of its layers on disk, and the result is made of them."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from laconic.calibrate import solution_files
from laconic.calibrate.recorder import Recorder
from laconic.compress import Compress
from laconic.compress.solve_groups import all_groups, find_layer_sets
from laconic.methods import KfacPrune, KfacSvd, Svd
from laconic.model import loans
from laconic.recipe.estimate.shapes import sizes_of
from tests.architectures import BY_NAME
from tests.compress.test_resumed import assert_same, llama, run, streamed
from tests.stopped import StopError, stop_at

__all__ = ["llama"]

STEP = Compress(method=KfacSvd(multiple=1), keep=0.6, allocate="spectrum", targets=("all",))
pytestmark = pytest.mark.filterwarnings("ignore:.*finished parts")


def files(scratch: Path) -> list[Path]:
    return sorted((scratch / "0" / "solutions").glob("*.safetensors"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the layers that were measured, in order."""
    names: list[str] = []

    def init(self: Recorder, lm: Any, sites: Any, *others: Any, **options: Any) -> None:
        names.extend(site.name for site in sites)
        plain(self, lm, sites, *others, **options)

    plain = Recorder.__init__
    monkeypatch.setattr(Recorder, "__init__", init)
    return names


def test_every_layer_is_measured_once(llama: Path, tmp_path: Path, measured: list[str]) -> None:
    run(streamed(llama, tmp_path / "scratch"), STEP)
    assert len(measured) == len(set(measured)) > 0
    assert not files(tmp_path / "scratch")


@pytest.mark.parametrize("part", [0, 1, 3])
def test_a_plan_goes_on_after_a_stop(
    part: int, llama: Path, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(streamed(llama, tmp_path / "whole"), STEP)
    with monkeypatch.context() as patch:
        patch.setattr(solution_files, "save_file", stop_at(part, solution_files.save_file))
        with pytest.raises(StopError):
            run(streamed(llama, tmp_path / "scratch"), STEP)
    finished = {file.stem for file in files(tmp_path / "scratch")}
    assert len(finished) == part
    measured.clear()
    assert_same(run(streamed(llama, tmp_path / "scratch"), STEP), expected)
    assert not [name for name in measured if name.startswith(tuple(f"{path}." for path in finished))]


def test_a_damaged_file_is_made_again(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(streamed(llama, tmp_path / "whole"), STEP)
    with monkeypatch.context() as patch:
        patch.setattr(solution_files, "save_file", stop_at(3, solution_files.save_file))
        with pytest.raises(StopError):
            run(streamed(llama, tmp_path / "scratch"), STEP)
    flipped, cut, _ = files(tmp_path / "scratch")
    content = bytearray(flipped.read_bytes())
    content[-8] ^= 64
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-8])
    assert_same(run(streamed(llama, tmp_path / "scratch"), STEP), expected)


def test_a_result_goes_on_after_a_stop_where_solutions_were_lost(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(streamed(llama, tmp_path / "whole"), STEP)
    with monkeypatch.context() as patch:
        patch.setattr(loans, "write_part", stop_at(1, loans.write_part))
        with pytest.raises(StopError):
            run(streamed(llama, tmp_path / "scratch"), STEP)
    for file in files(tmp_path / "scratch")[1:]:
        file.unlink()
    assert_same(run(streamed(llama, tmp_path / "scratch"), STEP), expected)


@pytest.mark.parametrize(
    ("changed", "once"),
    [
        ({}, True),
        ({"method": Svd(multiple=1)}, True),
        ({"method": KfacPrune()}, False),
        ({"share_inputs": True}, False),
        ({"allocate": "uniform"}, False),
    ],
)
def test_solutions_count_as_scratch_where_they_are_kept(changed: dict[str, Any], once: bool) -> None:
    settings = {"method": KfacSvd(multiple=1), "keep": 0.6, "allocate": "spectrum"} | changed
    lm = BY_NAME["llama"].lm()
    nn.Module.to(lm.model, "meta")
    step = Compress(**settings)
    assert step.solves_once(all_groups(find_layer_sets(step.sites(lm), step.share_inputs))) is once
    matrices = sum(site.shape[0] * site.shape[1] for site in step.sites(lm))
    assert (sizes_of(lm, [step], None).scratch > matrices * lm.dtype.itemsize) is once
