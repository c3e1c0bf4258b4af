"""Studies that run: every cell once, whatever is killed; statistics once; the same figures however many workers."""

import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from laconic.model import load
from laconic.recipe import read_recipe, run
from laconic.study import Cell, Executor, Ledger, Summary, cells_of, check_cells, run_study, study_from
from laconic.study.cells import record_header
from laconic.study.executors import InProcess, Processes
from laconic.study.ledger import CELLS
from laconic.study.worker import Worker, WorkItem


def cells(study: dict[str, Any]) -> list[Cell]:
    return cells_of(study_from(study, Path()))


def done(study: dict[str, Any], place: Path, executor: Executor | None = None, **more: Any) -> Summary:
    return run_study(cells(study), Ledger(str(place)), executor or InProcess(place), **more)


def records(place: Path) -> dict[str, Any]:
    return {record["key"]: record for record in Ledger(str(place)).all()[0]}


def figures(place: Path) -> dict[str, Any]:
    """The records of a study without the entries that depend on the clock."""
    timed = ("seconds", "finished", "statistics", "workers", "machine")
    found = records(place)
    return {key: {name: found[key][name] for name in found[key] if name not in timed} for key in found}


def test_every_cell_has_a_record_and_is_measured_once(little_study: dict[str, Any], tmp_path: Path) -> None:
    summary = done(little_study, tmp_path / "study")
    assert (summary.measured, summary.found, summary.failed) == (9, 0, ())
    found = records(tmp_path / "study")
    assert set(found) == {cell.key for cell in cells(little_study)}
    original = next(record for record in found.values() if record["baseline"])
    assert original["evaluation"]["results"]["glue/sst2"]["accuracy"]["value"] >= 0
    small = [record for record in found.values() if not record["baseline"]]
    for record in small:
        assert record["bytes"] < record["dense_bytes"] and record["sites"] and record["output"] is None
        assert record["evaluation"]["fidelity"]["kl"] > 0
        assert "glue/sst2" in record["evaluation"]["difference"]
    assert done(little_study, tmp_path / "study").measured == 0


def test_statistics_are_collected_once_for_a_model_and_seed(little_study: dict[str, Any], tmp_path: Path) -> None:
    little_study["axes"]["method"] = ["fwsvd", "drone", "kfac-svd"]
    summary = done(little_study, tmp_path / "study")
    assert summary.measured == 13 and summary.statistics_collected == 2
    assert sum(record.get("statistics") == "kept" for record in records(tmp_path / "study").values()) == 10


def test_nothing_is_locked_for_a_model_that_cannot_be_cached(
    little_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks: list[str] = []

    def lock(path: Path) -> FileLock:
        locks.append(path.name)
        return FileLock(path)

    monkeypatch.setattr(import_module("laconic.study.worker"), "FileLock", lock)
    monkeypatch.setattr(import_module("laconic.compress.solver_cache"), "hash_classes", lambda classes: None)
    little_study["axes"] |= {"method": ["fwsvd"], "seed": [0]}
    summary = done(little_study, tmp_path / "study")
    assert summary.statistics_collected >= 1 and not summary.failed and not locks


def test_a_cell_is_what_its_recipe_makes(little_study: dict[str, Any], tmp_path: Path) -> None:
    little_study |= {"save": True}
    done(little_study, tmp_path / "study")
    for cell in [cell for cell in cells(little_study) if not cell.baseline][:3]:
        record = records(tmp_path / "study")[cell.key]
        alone = run(cell.recipe, tmp_path / cell.key)
        assert record["file_bytes"] == alone.file_bytes and record["bytes"] == alone.changes.nbytes
        assert alone.evaluation is not None
        assert record["evaluation"]["results"] == alone.evaluation["results"]
        saved = tmp_path / "study" / record["output"] / "model.safetensors"
        assert saved.read_bytes() == (tmp_path / cell.key / "model.safetensors").read_bytes()


def test_a_model_is_prepared_once_for_all_its_cells(little_study: dict[str, Any], tmp_path: Path) -> None:
    training = {"finetune": {"epochs": 1, "batch_size": 2, "held_out": 1}}
    little_study |= {"prepare": [training], "exclude": [{"seed": 1}], "save": True}
    done(little_study, tmp_path / "study")
    assert [record.get("error") for record in records(tmp_path / "study").values()] == [None] * 5
    folders = [path for path in (tmp_path / "study" / "prepared").iterdir() if path.is_dir()]
    assert len(folders) == 1
    beside = next((tmp_path / "study" / "models").iterdir()) / "recipe.yaml"
    assert [step.name for step in read_recipe(beside).steps] == ["finetune", "compress"]
    assert all(record["state"] == "done" for record in records(tmp_path / "study").values())


def test_a_model_gets_the_head_of_its_task(little_study: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    del little_study["tasks"]
    little_study["axes"] |= {"model": [str(tiny_model)], "task": ["glue/sst2"], "seed": [0], "keep": [0.5]}
    training = {"finetune": {"epochs": 1, "batch_size": 2, "held_out": 1}}
    little_study |= {"prepare": {"glue/sst2": [{"student": {"classes": 2}}, training]}}
    check_cells(cells(little_study))
    assert not done(little_study, tmp_path / "study").failed
    (folder,) = (path for path in (tmp_path / "study" / "prepared").iterdir() if path.is_dir())
    assert load(str(folder)).model.config.num_labels == 2 != load(str(tiny_model)).model.config.num_labels


@pytest.mark.parametrize("as_axis", [False, True])
def test_the_distance_to_the_original_on_other_rows_is_a_task(
    little_study: dict[str, Any], little_data: Path, tmp_path: Path, as_axis: bool
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat\n" * 7)
    names = [f"fidelity:{text}", "fidelity:glue/sst2"] if as_axis else [f"fidelity:{text}"]
    little_study |= {"exclude": [{"keep": 0.5}, {"seed": 1}], "limit": 5}
    if as_axis:
        del little_study["tasks"]
        little_study["axes"]["task"] = names
    else:
        little_study["tasks"] = names
    check_cells(cells(little_study))
    assert not done(little_study, tmp_path / "study").failed
    found = records(tmp_path / "study").values()
    assert [record["baseline"] for record in found].count(True) == len(names)
    for record in found:
        if record["baseline"]:
            assert "evaluation" not in record and record["file_bytes"] > 0
        else:
            near = record["evaluation"]["fidelity"]
            named = record["axes"].get("task", names[0])
            assert near["kl"] > 0 and near["rows"] == 5 and f"fidelity:{near['source']}" == named


@pytest.mark.slow
def test_a_model_is_read_once_for_its_cells_and_makes_room_for_the_next(
    little_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [little_study["axes"]["model"][0], str(tmp_path / "other")]
    shutil.copytree(models[0], models[1])
    read: list[tuple[str, Any]] = []

    def alone(source: str, device: str = "cpu") -> Any:
        gc.collect()
        if source in models:
            assert not [other for other, model in read if model() is not None]
        lm = load(source, device)
        if source in models:
            read.append((source, weakref.ref(lm.model)))
        return lm

    monkeypatch.setattr(import_module("laconic.study.worker"), "load", alone)
    little_study |= {"exclude": [{"keep": 0.5}, {"seed": 1}]}
    done(little_study, tmp_path / "one")
    assert [source for source, _ in read] == models[:1]
    little_study["axes"]["model"] = models
    read.clear()
    done(little_study, tmp_path / "two")
    assert sorted(source for source, _ in read) == sorted(models)


class Slow:
    """An executor that counts what it is given, and takes its time."""

    def __init__(self, place: Path, turn: threading.Lock) -> None:
        self.worker, self.turn, self.keys = Worker(place), turn, list[str]()

    def run(self, items: Iterable[WorkItem | None]) -> Iterator[dict[str, Any]]:
        for item in items:
            if item is None:
                return
            # Transformers exchanges a method of all models while it loads one, which two threads leave exchanged.
            with self.turn:
                record = self.worker.measure(item)
            self.keys.append(record["key"])
            time.sleep(0.05)
            yield record


def test_no_cell_begins_before_its_original_is_judged(little_study: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(little_study["axes"]["model"][0], other)
    little_study |= {"exclude": [{"seed": 1}, {"method": "svd"}]}
    little_study["axes"]["model"].append(str(other))
    ledger, every = Ledger(str(tmp_path / "study")), cells(little_study)
    begun: list[str] = []

    class Looking:
        def run(self, items: Iterable[WorkItem | None]) -> Iterator[dict[str, Any]]:
            queue, worker = iter(items), Worker(tmp_path / "study")
            while (first := next(queue, None)) is not None:
                second = next(queue, None)
                for item in (first, *([] if second is None else [second])):
                    original = item.cell.original.key
                    assert item.cell.baseline or ledger.read(original) is not None
                    begun.append(item.cell.key)
                    yield worker.measure(item)

    assert run_study(every, ledger, Looking()).measured == len(every) == 6
    assert sorted(begun) == sorted(cell.key for cell in every)
    first, second = [cell for cell in every if cell.baseline]
    assert begun[:2] == [first.key, second.key], "two originals need not wait for each other"


def test_little_is_around_the_cells(little_study: dict[str, Any], tmp_path: Path) -> None:
    little_study["axes"] |= {"keep": [at / 100 for at in range(1, 101)], "method": ["svd"]}

    class Idle:
        def run(self, items: Iterable[WorkItem | None]) -> Iterator[dict[str, Any]]:
            for item in items:
                assert item is not None
                yield {**record_header(item.cell, 1), "state": "done", "seconds": {"total": 0.0}}

    summary = run_study(cells(little_study), Ledger(str(tmp_path / "study")), Idle())
    assert summary.measured == 201
    assert summary.seconds < 201 * 0.05, "a twentieth of a second for each would be ten times as much as it takes"


@pytest.mark.slow
def test_two_runners_share_the_cells(
    little_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("laconic.study.run"), "POLL_SECONDS", 0.1)
    place = tmp_path / "study"
    turn = threading.Lock()
    runners = [Slow(place, turn), Slow(place, turn)]
    threads = [threading.Thread(target=done, args=(little_study, place, runner)) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [key for runner in runners for key in runner.keys]
    assert sorted(keys) == sorted(cell.key for cell in cells(little_study)), "none twice, none left out"
    assert all(runner.keys for runner in runners)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_several_processes_find_the_same(little_study: dict[str, Any], tmp_path: Path) -> None:
    done(little_study, tmp_path / "one")
    done(little_study, tmp_path / "two", Processes(tmp_path / "two", workers=2))
    assert figures(tmp_path / "one") == figures(tmp_path / "two")


def test_records_are_json_that_others_read(little_study: dict[str, Any], tmp_path: Path) -> None:
    little_study["axes"] |= {"method": ["svd"], "keep": [0.5], "seed": [0]}
    done(little_study, tmp_path)
    for file in (tmp_path / CELLS).glob("*.json"):
        record = json.loads(file.read_text())
        assert {"version", "key", "state", "baseline", "axes", "family", "recipe", "seconds", "finished"} <= set(record)
