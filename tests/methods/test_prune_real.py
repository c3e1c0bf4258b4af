"""On a real model every method beats the simpler one in every matrix, by the error at the layer's own output."""

from pathlib import Path

import pytest
import torch

from laconic.calibrate import Calibration, InputCovariance, LayerStats, collect_stats
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import sample
from laconic.calibrate.sources import read
from laconic.methods import Magnitude, SparseGpt, UnstructuredPruning, Wanda
from laconic.methods.prune.base import Within
from laconic.model import LanguageModel, Site, load
from laconic.numerics.moments import quadratic_loss


@pytest.fixture(scope="module")
def measured(shared_models: Path, shared_data: Path) -> tuple[LanguageModel, dict[str, LayerStats]]:
    """minilm-sst2, and the moments of its inputs over some training rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACONIC_DATA", str(shared_data))
        lm = load(str(shared_models / "minilm-sst2"))
        rows = sample(read("glue/sst2", "train"), 128, seed=0)
        data = Calibration(batches(lm, rows, batch_size=16, max_length=128))
        return lm, collect_stats(lm, data, {InputCovariance}, lm.sites())


@pytest.mark.parametrize("within", ["matrix", "row"])
@pytest.mark.slow
def test_sparsegpt_beats_wanda_beats_magnitude_in_every_matrix(
    measured: tuple[LanguageModel, dict[str, LayerStats]], within: Within
) -> None:
    """In every other block weights compete within their matrix, in the others within their row."""
    lm, stats = measured
    sites = lm.sites()
    assert len(sites) == 36
    first = ("matrix", "row").index(within)
    mine = [site for site in sites if int(site.name.split(".layer.")[1].split(".")[0]) % 2 == first]
    assert len(mine) == 18
    for site in mine:
        surgeon, wanda, magnitude = (
            error(site, method, stats[site.name])
            for method in (
                SparseGpt(sparsity=0.6, within=within),
                Wanda(sparsity=0.6, within=within),
                Magnitude(sparsity=0.6, within=within),
            )
        )
        assert surgeon < wanda < magnitude, site.name


def error(site: Site, method: UnstructuredPruning, stats: LayerStats) -> float:
    """tr(E C E^T)."""
    E = site.weight() - method.compress(site.weight(), stats).dense()
    return 2 * quadratic_loss(E, torch.ones(len(E)), stats[InputCovariance].matrix)
