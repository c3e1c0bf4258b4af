"""Cells that fail, figures that are no numbers, files that are no records: told of, and in nobody's way."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from laconic.errors import Notice, UserError
from laconic.study import check_cells
from laconic.study.ledger import CELLS
from laconic.study.worker import Worker
from tests.study.test_run import cells, done, records


def test_a_failure_is_recorded_and_done_again_on_request(
    little_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laconic.methods import Svd

    solve = Svd.compress

    def broken(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Svd, "compress", broken)
    summary = done(little_study, tmp_path / "study")
    assert summary.measured == 9 and len(summary.failed) == 4
    assert {record["axes"]["method"] for record in summary.failed} == {"svd"}
    error = dict(summary.failed[0]["error"])
    assert "in broken" in error.pop("traceback")
    assert error == {"kind": "RuntimeError", "sentence": "no such luck"}
    monkeypatch.setattr(Svd, "compress", solve)
    later = done(little_study, tmp_path / "study")
    assert later.measured == 0 and len(later.failed) == 4
    again = done(little_study, tmp_path / "study", retry=True)
    assert again.measured == 4 and not again.failed


def test_a_figure_that_json_has_no_number_for_is_told_of_and_the_others_stand(
    little_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Worker._evaluate

    def undefined(self: Worker, *given: Any) -> dict[str, Any]:
        found = judge(self, *given)
        found["evaluation"]["results"]["glue/sst2"]["accuracy"]["value"] = float("nan")
        return found | {"predicted_losses": [float("inf")]}

    monkeypatch.setattr(Worker, "_evaluate", undefined)
    little_study["exclude"] = [{"keep": 0.5}, {"seed": 1}]
    assert not done(little_study, tmp_path).failed
    for record in records(tmp_path).values():
        accuracy = record["evaluation"]["results"]["glue/sst2"]["accuracy"]
        assert accuracy["value"] is None and accuracy["low"] >= 0
        assert record["not_finite"]["evaluation.results.glue/sst2.accuracy.value"] == "nan"


def test_a_damaged_record_is_put_aside_and_its_cell_measured(little_study: dict[str, Any], tmp_path: Path) -> None:
    little_study["axes"] |= {"method": ["svd"], "keep": [0.5], "seed": [0]}
    wanted = cells(little_study)
    done(little_study, tmp_path)
    whole = records(tmp_path)
    first, second = (tmp_path / CELLS / f"{cell.key}.json" for cell in wanted[:2])
    half = first.read_bytes()[:100]
    first.write_bytes(half)
    second.write_text(json.dumps({**json.loads(second.read_text()), "version": 0}))
    with pytest.warns(Notice, match="A cell is measured again: the file of its record was invalid") as told:
        summary = done(little_study, tmp_path)
    assert len(told) == 2 and summary.measured == 2 and not summary.invalid
    assert {moved.reason for moved in summary.moved} == {
        "it cannot be read as JSON", "it is of version 0, and this is version 1",
    }  # fmt: skip
    assert (tmp_path / summary.moved[0].name).read_bytes() == half
    again = records(tmp_path)
    assert again.keys() == whole.keys()
    assert all(again[key]["evaluation"]["results"] == record["evaluation"]["results"] for key, record in whole.items())
    assert not done(little_study, tmp_path).moved


def test_what_cannot_be_is_found_before_anything_runs(little_study: dict[str, Any], tmp_path: Path) -> None:
    check_cells(cells(little_study))
    for wrong, sentence in (
        ({"tasks": ["glue/sst3"]}, "sst2"),
        ({"data": "nosuch"}, "nosuch"),
        ({"axes": {**little_study["axes"], "model": [str(tmp_path / "nothing")]}}, "nothing"),
        ({"axes": {**little_study["axes"], "targets": [["nowhere"]]}}, "nowhere"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_cells(cells({**little_study, **wrong}))


def test_a_preparation_that_fails_is_tried_once(
    little_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little_study |= {"prepare": [{"finetune": {"epochs": 1, "batch_size": 2, "held_out": 1}}]}
    tried: list[Path] = []

    def broken(_: object, folder: Path, **__: object) -> None:
        tried.append(folder)
        raise OSError("no room")

    monkeypatch.setattr(import_module("laconic.study.worker"), "run", broken)
    summary = done(little_study, tmp_path / "study")
    assert len(tried) == 2 and len(set(tried)) == 2, "one for each seed"
    sentences = {record["error"]["sentence"] for record in summary.failed}
    assert len(summary.failed) == 10 and sentences == {"no room", "Its model could not be prepared: no room"}
