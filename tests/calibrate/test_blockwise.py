"""Statistics block by block equal those of one pass over the whole model."""

import pytest
import torch

from laconic.calibrate import Calibration, GradCovariance, InputCovariance, Statistic, collect_stats
from laconic.calibrate.blockwise import blockwise_calibrate
from laconic.calibrate.spill import HiddenStates
from laconic.errors import UserError
from laconic.model import load
from laconic.model.loading import load_streamed
from tests.architectures import ARCHITECTURES, BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import MIXTURES

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
            check_alike(measured[name][kind], stats[kind], name)


def check_alike(measured: Statistic, expected: Statistic, name: str) -> None:
    """Check that two statistics are equal, apart from the order of sums over the blocks of a decoder."""
    assert measured.count == expected.count, name
    largest = float(expected.total.abs().max())
    torch.testing.assert_close(measured.total, expected.total, rtol=0, atol=1e-5 * largest, msg=name)


@pytest.mark.filterwarnings("ignore:.*saw fewer tokens")
@pytest.mark.parametrize("name", ["llama", "bert-classifier", "t5", "mixtral"])
@pytest.mark.parametrize("needs", [{InputCovariance}, {InputCovariance, GradCovariance}], ids=["inputs", "gradients"])
def test_a_streamed_model_has_the_statistics_of_the_model_in_memory(name, needs, tmp_path) -> None:
    model = MIXTURES[name][0]() if name in MIXTURES else BY_NAME[name].model()
    model.save_pretrained(tmp_path / "model")
    lm = load(str(tmp_path / "model"))
    streamed = load_streamed(str(tmp_path / "model"), tmp_path / "scratch")
    data = Calibration(labelled_batches(lm, 2))
    expected = collect_stats(lm, data, needs, lm.sites(("blocks",)))
    measured = {}
    for problems in blockwise_calibrate(streamed, data, needs, streamed.sites(("blocks",))):
        own = {site.block for site, _ in problems}
        others = [block for _, found in streamed.stacks() for path, block in found if path not in own]
        assert all(parameter.is_meta for block in others for parameter in block.parameters())
        measured |= {site.name: problem.stats for site, problem in problems}
    assert measured.keys() == expected.keys()
    for site, stats in expected.items():
        for kind in needs:
            check_alike(measured[site][kind], stats[kind], site)
    blocks = [block for _, found in streamed.stacks() for _, block in found]
    assert all(parameter.is_meta for block in blocks for parameter in block.parameters())


def test_hidden_states_come_back_from_their_file(tmp_path) -> None:
    file = tmp_path / "states" / "block"
    states = HiddenStates(file)
    tensors = [torch.randn(2, 3, 4), torch.randn(1, 5, 4, dtype=torch.float64), torch.randn(4, 2).bfloat16()]
    for tensor in tensors:
        states.append(tensor)
    assert HiddenStates.open(file) is None, "it is not complete"
    states.complete()
    found = HiddenStates.open(file)
    assert found is not None and len(found) == len(tensors)
    # Read in any order.
    for number in (2, 0, 1):
        assert torch.equal(found[number], tensors[number]) and found[number].dtype == tensors[number].dtype
    # A run may go on on another device.
    elsewhere = HiddenStates.open(file, "meta")
    assert elsewhere is not None and elsewhere[0].is_meta
    found.delete()
    assert not list(file.parent.iterdir())


def test_a_file_of_hidden_states_that_was_cut_off_is_reported(tmp_path) -> None:
    states = HiddenStates(tmp_path / "block")
    states.append(torch.randn(2, 3))
    states.complete()
    (tmp_path / "block").write_bytes(b"short")
    with pytest.raises(UserError, match="was cut off"):
        _ = states[0]
