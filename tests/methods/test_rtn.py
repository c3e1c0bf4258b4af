"""Rounding to nearest where nothing is known of the inputs: its search against the whole range, by the model itself."""

from pathlib import Path
from typing import Literal

import pytest

from laconic.calibrate.batching import batches
from laconic.compress import Compress
from laconic.compress.kl_metric import KLMetric
from laconic.methods import Rtn
from laconic.model import load
from tests.stories import stories_of

GroupSize = int | Literal["channel"]


@pytest.fixture(scope="module")
def judge(shared_models: Path, shared_data: Path) -> KLMetric:
    """stories260K, and rows at the end of the stories."""
    lm = load(str(shared_models / "stories260K"))
    last = stories_of(shared_data, slice(-24, None))
    return KLMetric(lm, batches(lm, last, batch_size=8, max_length=128))


@pytest.mark.parametrize("group_size", [32, 64, "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.slow
def test_the_default_is_no_worse_than_the_whole_range(judge: KLMetric, bits: int, group_size: GroupSize) -> None:
    """KL from the dense model."""
    for symmetric in (False, True):
        default, whole = (
            divergence(judge, method)
            for method in (
                Rtn(bits=bits, group_size=group_size, symmetric=symmetric),
                Rtn(bits=bits, group_size=group_size, symmetric=symmetric, clip=False),
            )
        )
        assert default <= 1.02 * whole, (symmetric, default, whole)


def divergence(judge: KLMetric, method: Rtn) -> float:
    small = judge.original.shallow_copy()
    Compress(method=method).apply(small, None)
    return judge(small)
