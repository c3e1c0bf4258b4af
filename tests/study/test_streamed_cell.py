"""Cells that are measured one block at a time have the figures of cells in memory, and go on after a kill."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from laconic.errors import UserError
from laconic.study import cells_of, check_cells, study_from
from laconic.study.memory import MemoryNeeds
from laconic.study.streamed_cell import STREAMED
from tests.stopped import StopError, stop_at
from tests.study.test_run import cells, done, records


def by_method(place: Path) -> dict[str, Any]:
    return {record["axes"]["method"]: record for record in records(place).values()}


def test_a_streamed_cell_has_the_figures_of_one_in_memory(streamed_study: dict[str, Any], tmp_path: Path) -> None:
    summary = done(streamed_study, tmp_path / "streamed")
    assert [record["error"] for record in summary.failed] == []
    assert done({**streamed_study, "stream": None}, tmp_path / "memory").failed == ()
    streamed, whole = by_method(tmp_path / "streamed"), by_method(tmp_path / "memory")
    assert streamed.keys() == whole.keys() and len(whole) == 2
    for method, record in whole.items():
        for name in ("bytes", "dense_bytes", "baseline"):
            assert streamed[method][name] == record[name]
        (task, values), *_ = record["evaluation"]["results"].items()
        for metric, value in values.items():
            assert streamed[method]["evaluation"]["results"][task][metric]["value"] == pytest.approx(value["value"])
    assert not (tmp_path / "streamed" / STREAMED).exists()


@pytest.mark.filterwarnings("ignore:The finished parts are kept")
def test_a_cell_that_was_killed_goes_on(
    streamed_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loans = import_module("laconic.model.loans")
    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(loans, "write_part", stop_at(1, loans.write_part))
        done(streamed_study, tmp_path)
    (scratch,) = (tmp_path / STREAMED).glob(".*.scratch-*")
    assert len(list(scratch.rglob("*.safetensors"))) == 1
    written: list[object] = []
    write_part = loans.write_part
    monkeypatch.setattr(loans, "write_part", lambda *arguments: written.append(0) or write_part(*arguments))
    assert done(streamed_study, tmp_path).failed == ()
    assert len(written) == 1
    assert not (tmp_path / STREAMED).exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cost": True}, "cost must be left out with stream"),
        ({"axes": {"method": ["magnitude"], "keep": [0.5]}, "allocate": "global"}, "allocate: global compares all"),
        ({"tasks": ["blimp"]}, "With stream, perplexity"),
    ],
)
def test_what_needs_the_whole_model_is_refused(
    changes: dict[str, Any], sentence: str, streamed_study: dict[str, Any]
) -> None:
    axes = {**streamed_study["axes"], **changes.get("axes", {})}
    with pytest.raises(UserError, match=sentence):
        check_cells(cells({**streamed_study, **changes, "axes": axes}))


def test_a_worker_needs_the_memory_of_a_block(streamed_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (_, cell) = cells_of(study_from(streamed_study, Path()))
    assert MemoryNeeds().of(cell) == 0
    monkeypatch.setattr(import_module("laconic.study.memory"), "LARGE", 0)
    monkeypatch.setattr(import_module("laconic.study.memory"), "resident_memory", lambda: 0)
    (_, whole) = cells_of(study_from({**streamed_study, "stream": None}, Path()))
    assert 0 < MemoryNeeds().of(cell) < MemoryNeeds().of(whole)
