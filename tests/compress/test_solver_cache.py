"""Cached solutions: they are computed once, give the same model, and can be missing."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from laconic.cache import cache_limit
from laconic.calibrate import Calibration
from laconic.compress import Compress
from laconic.errors import UserError
from laconic.methods import Drone, KfacSvd, Method, Wlra
from laconic.model import LanguageModel
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches
from tests.compress.test_matrices import logits


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    return tmp_path / "solved"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


def run(step: Compress, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[LanguageModel, torch.Tensor]:
    """The step on the same model; with `monkeypatch`, where nothing may be measured."""
    lm = BY_NAME["bert-classifier"].lm()
    if monkeypatch is not None:
        # `laconic.compress` is also a function, which hides the package of that name.
        monkeypatch.setattr(sys.modules["laconic.compress.matrices"], "collect_stats", None)
    step.apply(lm, Calibration(labelled_batches(lm, 4)))
    return lm, logits(lm)


def step_of(method: Method, keep: float, **extra: object) -> Compress:
    return Compress(method=method, keep=keep, **extra)


@pytest.mark.parametrize("method", [Drone(multiple=1), KfacSvd(multiple=1), Wlra(multiple=1, iterations=5)])
@pytest.mark.parametrize("extra", [{}, {"allocate": "spectrum"}, {"allocate": "spectrum", "share_inputs": True}])
def test_a_second_size_is_solved_without_measuring_and_is_the_same(method, extra, folder, monkeypatch):
    fresh = run(step_of(method, 0.4, **extra))[1]
    (entry,) = entries(folder)
    entry.unlink()
    run(step_of(method, 0.7, **extra))
    assert torch.equal(run(step_of(method, 0.4, **extra), monkeypatch)[1], fresh)


@pytest.mark.parametrize("change", ["weights", "tokens", "seed", "method", "allocate", "targets"])
def test_whatever_decides_the_result_makes_another_entry(change, folder):
    lm = BY_NAME["bert-classifier"].lm()
    data = Calibration(labelled_batches(lm, 4), seed=0)
    step_of(Drone(multiple=1), 0.5).apply(BY_NAME["bert-classifier"].lm(), data)
    step, before = step_of(Drone(multiple=1), 0.4), entries(folder)
    match change:
        case "weights":
            lm.sites()[3].module.weight.data[0, 0] += 1e-3
        case "tokens":
            data.batches[1]["input_ids"][0, 2] += 1
        case "seed":
            data = Calibration(data.batches, seed=1)
        case "method":
            step = step_of(KfacSvd(multiple=1), 0.4)
        case "allocate":
            step = step_of(Drone(multiple=1), 0.4, allocate="spectrum")
        case "targets":
            step = step_of(Drone(multiple=1), 0.4, targets=("ffn",))
    step.apply(lm, data)
    assert len(entries(folder)) == len(before) + 1 == 2


def test_a_damaged_entry_costs_time_and_no_more(folder):
    fresh = run(step_of(Drone(multiple=1), 0.4))[1]
    (entry,) = entries(folder)
    entry.write_bytes(entry.read_bytes()[:100])
    assert torch.equal(run(step_of(Drone(multiple=1), 0.4))[1], fresh)


def test_a_folder_that_cannot_be_written_costs_time_and_no_more(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "file"))
    run(step_of(Drone(multiple=1), 0.4))


def test_the_least_recently_used_make_room(folder, monkeypatch):
    run(step_of(Drone(multiple=1), 0.4))
    (first,) = entries(folder)
    size = first.stat().st_size
    monkeypatch.setenv("LACONIC_CACHE_GB", str(1.2 * size / 1e9))
    run(step_of(Drone(multiple=1), 0.4, targets=("ffn",)))
    assert len(entries(folder)) == 1
    assert entries(folder) != [first]
    monkeypatch.setenv("LACONIC_CACHE_GB", "0")
    run(step_of(Drone(multiple=1), 0.4, targets=("attention",)))
    assert len(entries(folder)) == 1


def test_a_cache_of_nothing_serves_nothing(monkeypatch):
    run(step_of(Drone(multiple=1), 0.4))
    monkeypatch.setenv("LACONIC_CACHE_GB", "0")
    with pytest.raises(TypeError, match="NoneType"):
        run(step_of(Drone(multiple=1), 0.7), monkeypatch)


OWN = """
from dataclasses import dataclass
from laconic.calibrate import InputCovariance
from laconic.methods.lowrank.base import TruncationMethod
from laconic.numerics.lowrank import svd_components

@dataclass(frozen=True, kw_only=True)
class Own(TruncationMethod):
    name, paper, needs = "own", "none", frozenset({InputCovariance})

    def components(self, weight, known):
        known.get_or_compute(str(len(weight)), lambda: (weight,))
        return svd_components(FACTOR * weight)
"""


def test_an_edited_method_of_others_is_solved_anew(tmp_path, folder, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    results = []
    for factor in ("1.0", "3.0", "1.0"):
        (tmp_path / "own_method.py").write_text(OWN.replace("FACTOR", factor))
        importlib.invalidate_caches()
        sys.modules.pop("own_method", None)
        results.append(run(step_of(importlib.import_module("own_method").Own(multiple=1), 0.5))[1])
    assert len(entries(folder)) == 2
    assert torch.equal(results[0], results[2]) and not torch.allclose(results[0], results[1])


COUNTING = """
from dataclasses import dataclass
import torch
from laconic.calibrate import InputCovariance as Theirs, InputStatistic
from laconic.methods.lowrank.base import TruncationMethod
from laconic.numerics.lowrank import svd_components

class InputCovariance(InputStatistic):
    @classmethod
    def empty(cls, in_features, lookup, device):
        return cls(torch.zeros(in_features, dtype=torch.float64, device=device))

    def update(self, x):
        self.count += len(x)
        self._add(torch.bincount(x, minlength=len(self.total)) if x.ndim == 1 else x.abs().sum(0))

@dataclass(frozen=True, kw_only=True)
class Counting(TruncationMethod):
    name, paper, needs = "counting", "none", frozenset({Theirs, InputCovariance})
    caches_solution = False

    def components(self, weight, stats):
        assert stats[Theirs].count == stats[InputCovariance].count > 0
        return svd_components(weight * (1 + stats[InputCovariance].total))
"""


def test_a_statistic_of_a_plug_in_is_stored_and_read(tmp_path, folder, monkeypatch):
    """Also if it has the name of one of laconic."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "counting_method.py").write_text(COUNTING)
    method = importlib.import_module("counting_method").Counting(multiple=1)
    fresh = run(step_of(method, 0.4))[1]
    (entry,) = entries(folder)
    # Without the stored solutions, the method reads the statistics again.
    rewrite(
        entry,
        lambda contents: {group: {**lists, "solutions": []} for group, lists in contents.items()},
    )
    assert torch.equal(run(step_of(method, 0.4), monkeypatch)[1], fresh)


def test_an_entry_of_the_earlier_form_is_computed_again(folder, monkeypatch):
    fresh = run(step_of(Drone(multiple=1), 0.4))[1]
    (entry,) = entries(folder)
    rewrite(entry, lambda contents: json.loads(json.dumps(contents).replace('"solutions"', '"worked_out"')))
    assert torch.equal(run(step_of(Drone(multiple=1), 0.4))[1], fresh)
    assert torch.equal(run(step_of(Drone(multiple=1), 0.4), monkeypatch)[1], fresh)


def rewrite(entry: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the JSON description in an entry."""
    with safe_open(entry, "pt") as file:
        contents = change(json.loads(file.metadata()["contents"]))
    save_file(load_file(entry), entry, {"contents": json.dumps(contents)})


def test_a_method_without_source_is_not_cached(folder):
    names: dict[str, Any] = {"__name__": "nowhere"}
    exec(OWN.replace("FACTOR", "1.0"), names)
    run(step_of(names["Own"](multiple=1), 0.5))
    assert entries(folder) == []


def test_a_plan_that_leaves_matrices_dense_is_not_kept(folder):
    lm = BY_NAME["bert-classifier"].lm()
    names = [site.name for site in lm.sites()]
    plan = {name: Drone(rank=2) if index else None for index, name in enumerate(names)}
    run(Compress(method=Drone(), plan=plan))
    assert entries(folder) == []


@pytest.mark.parametrize("said", ["much", "-1", "nan"])
def test_a_limit_that_is_none_is_one_sentence(said, monkeypatch):
    monkeypatch.setenv("LACONIC_CACHE_GB", said)
    with pytest.raises(UserError, match="LACONIC_CACHE_GB must be"):
        cache_limit()
