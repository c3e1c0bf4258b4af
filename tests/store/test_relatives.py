"""The architectures that resemble another one: every step on them, saved and reloaded, and back to a stock model."""

from pathlib import Path

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.compress import Compress, Narrow, Shorten, ShrinkHeads
from laconic.methods import KfacSvd
from laconic.model import LanguageModel, divergence, load, predict
from laconic.model.layers import find_layers
from laconic.store import materialize, save
from laconic.store.structure import describe
from tests.architectures import BY_NAME, alike, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.headed import RELATED, SIZE
from tests.narrow import FIXED_HEADS, STOCK, narrowed
from tests.tiny_relatives import RELATIVES

every_relative = pytest.mark.parametrize("name", RELATIVES)


def check_saved(lm: LanguageModel, folder: Path) -> None:
    """It comes back exactly, and as a stock model it computes the same."""
    save(lm, folder)
    again = load(str(folder))
    assert alike(outputs(again.model), outputs(lm.model))
    assert all(torch.equal(tensor, again.model.state_dict()[key]) for key, tensor in lm.model.state_dict().items())
    if describe(lm.model):
        dense = materialize(lm.model)
        assert not describe(dense)
        torch.testing.assert_close(outputs(dense), outputs(lm.model), rtol=1e-4, atol=1e-5)


@every_relative
@pytest.mark.parametrize("uniform", [True, False])
def test_narrowed(name: str, uniform: bool, tmp_path: Path) -> None:
    lm = narrowed(name, uniform)
    check_saved(lm, tmp_path / name)
    if uniform and name in STOCK:
        assert not describe(lm.model)


@every_relative
def test_shortened(name: str, tmp_path: Path) -> None:
    lm = BY_NAME[name].lm()
    # BigBird draws the blocks of tokens that an attention reads by the number of its layer.
    index = 1 if name == "big-bird-masked" else 0
    Shorten(blocks={layers.name: (index,) for layers in find_layers(lm)}).apply(lm, None)
    assert not describe(lm.model)
    check_saved(lm, tmp_path / name)


@every_relative
def test_measured_and_compressed(name: str, tmp_path: Path) -> None:
    """Statistics of all inputs and outputs, matrices of one input together, and how far the result is off."""
    lm = BY_NAME[name].lm()
    batches = labelled_batches(lm, 2)
    before, _ = predict(lm, batches[0])
    Compress(method=KfacSvd(multiple=1), keep=0.5, share_inputs=True).apply(lm, Calibration(batches))
    after, _ = predict(lm, batches[0])
    assert 0 < float(divergence(before, after).detach().mean()) < 10
    check_saved(lm, tmp_path / name)


@every_relative
def test_narrowed_by_its_statistics(name: str) -> None:
    lm = BY_NAME[name].lm()
    headed = Narrow(channels=0.5, multiple=1) if name in FIXED_HEADS else Narrow(heads=0.5, channels=0.5, multiple=1)
    outcome = headed.apply(lm, Calibration(labelled_batches(lm, 4)))
    assert outcome.nbytes < outcome.dense_nbytes
    assert outputs(lm.model).isfinite().all()


@pytest.mark.parametrize("name", RELATED)
def test_shrunk(name: str, tmp_path: Path) -> None:
    lm = BY_NAME[name].lm()
    ShrinkHeads(size=SIZE).apply(lm, Calibration(labelled_batches(lm, 4)))
    check_saved(lm, tmp_path / name)
