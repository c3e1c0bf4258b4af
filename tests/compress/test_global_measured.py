"""One threshold for all, corrected by what blocks cost when they are measured: never behind the same everywhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import Calibration, Known, survey
from laconic.calibrate.corpus import batches
from laconic.compress import Compress
from laconic.compress.judge import Judge
from laconic.compress.ways import Allocation
from laconic.compress.ways.global_threshold import ALLOCATED
from laconic.compress.ways.trial import ROWS, halves
from laconic.methods import KfacPrune
from laconic.model import LanguageModel, load
from tests.stories import stories_of


class Ground(NamedTuple):
    """A model, what was measured of its matrices on which rows, and rows apart from those."""

    lm: LanguageModel
    data: Calibration
    known: dict[str, Known]
    judge: Judge


@pytest.fixture(scope="module")
def ground(shared_models: Path, shared_data: Path) -> Ground:
    """stories260K: 32 stories to calibrate on, 32 others to judge."""
    lm = load(str(shared_models / "stories260K"))
    first, last = (stories_of(shared_data, part) for part in (slice(32), slice(-32, None)))
    data = Calibration(batches(lm, first, max_length=96))
    known = survey(lm, data, KfacPrune().needs, lm.sites())
    return Ground(lm, data, known, Judge(lm, batches(lm, last, max_length=96)))


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_it_diverges_no_more_than_the_same_sparsity_everywhere(ground: Ground, sparsity: float) -> None:
    """By predictions alone it did, by 12 %: the first blocks cost more than was predicted of them."""
    divergences, told = {}, {}
    ways: tuple[Allocation, ...] = ("uniform", "global")
    for way in ways:
        small = ground.lm.twin()
        step = Compress(method=KfacPrune(sparsity=sparsity), allocate=way)
        outcome = step.solve(small, ground.known, ground.data)
        divergences[way], told[way] = ground.judge(small), outcome.found
        zeros = sum(int((site.weight() == 0).sum()) for site in small.sites())
        assert abs(zeros - sparsity * sum(site.weight().numel() for site in small.sites())) < len(small.sites())
    assert divergences["global"] <= 1.02 * divergences["uniform"]
    assert told["global"][ALLOCATED]["taken"] == "global"


@dataclass(frozen=True, kw_only=True)
class Misled(KfacPrune):
    """As `kfac-prune`, but matrices of large losses are said to have small ones."""

    name = "misled"

    def scores(self, weight: Float[Tensor, "out in"], known: Known) -> Float[Tensor, "out in"]:
        right = super().scores(weight, known)
        return right / right.mean().square()


def test_where_one_threshold_is_worse_it_falls_back_and_says_so(ground: Ground) -> None:
    small = ground.lm.twin()
    outcome = Compress(method=Misled(sparsity=0.5), allocate="global").solve(small, ground.known, ground.data)
    told = outcome.found[ALLOCATED]
    assert told["taken"] == "uniform"
    assert told["kl"]["uniform"] < told["kl"]["global"]
    assert set(outcome.plan.values()) == {Misled(sparsity=0.5)}


def test_rows_that_measure_do_not_judge() -> None:
    rows = [{"input_ids": torch.arange(start, start + 25)[:, None]} for start in (0, 25, 50)]
    found = halves(rows)
    assert found is not None
    ids = [{int(row) for batch in half for row in batch["input_ids"]} for half in found]
    assert [len(part) for part in ids] == [ROWS, ROWS]
    assert not ids[0] & ids[1]
    assert halves([{"input_ids": torch.zeros(3, 1)}]) is None
