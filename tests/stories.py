"""Real stories for tests of a real language model."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from laconic.calibrate import Calibration, LayerStats, Statistic, collect_stats
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.sources import read
from laconic.compress.kl_metric import KLMetric
from laconic.model import LanguageModel, load


class Ground(NamedTuple):
    """A model, its calibration rows, the statistics of its matrices, and its divergence on other rows."""

    lm: LanguageModel
    data: Calibration
    stats: dict[str, LayerStats]
    judge: KLMetric


def ground_of(
    shared_models: Path, shared_data: Path, needs: Collection[type[Statistic]], rows: int, max_length: int
) -> Ground:
    """stories260K with its first stories to calibrate on, and as many of the last ones to judge."""
    lm = load(str(shared_models / "stories260K"))
    first, last = (stories_of(shared_data, part) for part in (slice(rows), slice(-rows, None)))
    data = Calibration(batches(lm, first, max_length=max_length))
    stats = collect_stats(lm, data, needs, lm.sites())
    return Ground(lm, data, stats, KLMetric(lm, batches(lm, last, max_length=max_length)))


def stories_of(shared_data: Path, part: slice) -> Corpus:
    """This part of the training rows of `tinystories`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACONIC_DATA", str(shared_data))
        stories = read("tinystories", "train")
    return replace(stories, examples=stories.examples[part])
