"""Profiles of a pass, on a clock that counts multiplications."""

from itertools import count

import pytest
import torch

from laconic.calibrate import passes as module
from laconic.calibrate.passes import Workload, profile
from tests.architectures import BY_NAME


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "llama-tied", "t5", "bart", "albert-masked"])
def test_the_parts_are_of_the_whole_and_the_rows_those_of_the_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every look at the clock is a tick later, so a matrix takes one tick for each call.
    ticks = count()
    monkeypatch.setattr(module, "read_clock", lambda device: float(next(ticks)))
    lm = BY_NAME[name].lm()
    lm.model.train()
    sites = lm.sites()
    found = profile(lm, sites, Workload(batch=3, length=5))
    calls = sum(len(use.rows) for use in found.layers.values())
    assert found.seconds == 2 * calls + 1
    assert set(found.layers) == {site.name for site in sites}
    for use in found.layers.values():
        assert use.rows and set(use.rows) == {15}
        assert use.share == pytest.approx(len(use.rows) / found.seconds)
    assert lm.model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in lm.model.modules())


def test_looking_up_an_embedding_counts_nothing() -> None:
    lm = BY_NAME["llama-tied"].lm()
    found = profile(lm, lm.sites(("embedding", "head")), Workload(batch=1, length=4))
    for name, use in found.layers.items():
        module_there = lm.model.get_submodule(name)
        assert bool(use.rows) == isinstance(module_there, torch.nn.Linear)


def test_a_slow_model_is_run_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(step=100)
    monkeypatch.setattr(module, "read_clock", lambda device: float(next(ticks)))
    lm = BY_NAME["gpt2"].lm()
    seen = []

    def track(items, what, work=None):
        for item in items:
            seen.append(item)
            yield item

    profile(lm, lm.sites(), Workload(batch=1, length=2), track)
    assert len(seen) == module.FEWEST_RUNS
