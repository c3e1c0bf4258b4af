"""Statistics block by block equal those of one pass over the whole model."""

import pytest
import torch

from laconic.calibrate import Calibration, GradCovariance, InputCovariance, collect_stats
from laconic.calibrate.blockwise import blockwise_calibrate
from laconic.errors import UserError
from tests.architectures import ARCHITECTURES
from tests.calibrate.test_collect_stats import labelled_batches

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
NO_CHAIN = {"albert"}


@every_architecture
@pytest.mark.parametrize("needs", [{InputCovariance}, {InputCovariance, GradCovariance}], ids=["inputs", "gradients"])
def test_statistics_block_by_block_equal_those_of_the_whole_model(architecture, needs) -> None:
    lm = architecture.lm()
    data = Calibration(labelled_batches(lm, 2))
    encoder_decoder = len(list(lm.stacks())) > 1
    sites = [
        site for site in lm.sites(("all",)) if not (site.is_lookup and encoder_decoder and GradCovariance in needs)
    ]
    if lm.model.config.model_type in NO_CHAIN:
        with pytest.raises(UserError, match="cannot be measured block by block"):
            list(blockwise_calibrate(lm, data, needs, sites))
        return
    expected = collect_stats(lm, data, needs, sites)
    measured = {}
    for problems in blockwise_calibrate(lm, data, needs, sites):
        measured |= {site.name: problem.stats for site, problem in problems}
    assert measured.keys() == expected.keys()
    for name, stats in expected.items():
        for kind in needs:
            mine, other = measured[name][kind], stats[kind]
            assert mine.count == other.count, name
            torch.testing.assert_close(
                mine.total, other.total, rtol=1e-5, atol=1e-9 + 1e-6 * float(other.total.abs().max()), msg=name
            )
