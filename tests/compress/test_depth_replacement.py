"""What stands in the place of dropped blocks: a bias that is the exact mean, maps that help in every kind of writer."""

import pytest
import torch

from laconic.compress import Compress, Shorten
from laconic.compress.depth.cuts import Cut, every_cut
from laconic.compress.depth.stream import streams
from laconic.compress.depth.surgery import fits_for, take_out
from laconic.errors import UserError
from laconic.formats import LowRank, Sparse
from laconic.methods import Svd
from laconic.model import load
from laconic.model.layers import layers_of
from tests.architectures import BY_NAME
from tests.compress.test_depth import NAMES, data_for, kl
from tests.model.test_depth import deep


@pytest.mark.parametrize("name", NAMES)
def test_a_bias_is_the_exact_mean(name: str) -> None:
    """The mean hidden state behind the run is that of the original, over the tokens that count."""
    lm = BY_NAME[name].lm()
    data = data_for(lm)
    small = lm.twin()
    layers = layers_of(lm)[-1]
    fits = fits_for(lm, data, "bias")
    take_out(small, [Cut(layers.name, 1)], fits, lm)
    means = []
    for model in (lm, small):
        total, count = 0, 0
        for batch in data.batches:
            found = streams(model, batch, every_cut(model, "blocks"))
            points, rows = found[layers.name]
            total, count = total + rows.of(points[-1]).double().sum(0), count + int(rows.counted.sum())
        means.append(total / count)
    assert torch.allclose(*means, atol=1e-4)


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "gemma2", "t5", "opt-norm-after", "bart"])
def test_a_map_helps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a norm, in a matrix with a bias and in one without."""
    lm = deep(name, monkeypatch)
    data = data_for(lm, 8)
    twins = {replace: lm.twin() for replace in ("nothing", "linear")}
    for replace, twin in twins.items():
        blocks = (1,) if len(layers_of(lm)) == 1 else {"decoder": (1,)}
        Shorten(blocks=blocks, replace=replace).apply(twin, data)
    assert kl(twins["linear"], lm, data) < kl(twins["nothing"], lm, data)


def test_a_map_sits_where_something_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block without its feed-forward that is the attention, as a constant is mapped to another constant only."""
    lm = deep("gpt2", monkeypatch)
    data = data_for(lm, 8)
    Shorten(blocks=("0.ffn",), replace="bias").apply(lm, data)
    before = lm.model.get_submodule("transformer.h.0.attn.c_proj").get_parameter("weight").clone()
    found = {}
    for replace in ("bias", "linear"):
        small = lm.twin()
        Shorten(blocks=(1,), replace=replace).apply(small, data)
        found[replace] = kl(small, lm, data)
    mapped = small.model.get_submodule("transformer.h.0.attn.c_proj").get_parameter("weight")
    assert not torch.equal(mapped, before) and found["linear"] < found["bias"]


def test_compressed_blocks_take_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the factor that writes, which keeps its size; what is sparse says so."""
    lm = deep("gpt2", monkeypatch)
    sparse = lm.twin()
    Compress(method=Svd(rank=12)).apply(lm, None)
    data = data_for(lm)
    original = lm.twin()
    outcome = Shorten(blocks=(1,), replace="linear").apply(lm, data)
    assert isinstance(lm.model.get_submodule("transformer.h.0.mlp.c_proj"), LowRank)
    nothing = original.twin()
    Shorten(blocks=(1,)).apply(nothing, data)
    assert kl(lm, original, data) < kl(nothing, original, data)
    assert outcome.nbytes * 4 == outcome.dense_nbytes * 3
    site = next(site for site in sparse.sites() if site.name == "transformer.h.0.mlp.c_proj")
    sparse.replace(site, Sparse.of(site.weight() * (site.weight() > 0), site.weight() > 0))
    Shorten(blocks=(1,), replace="bias").apply(sparse.twin(), data)
    with pytest.raises(UserError, match=r"'transformer.h.0.mlp.c_proj' is stored as 'sparse', which takes no map in"):
        Shorten(blocks=(1,), replace="linear").apply(sparse, data)


def test_a_map_helps_a_real_model(shared_models, shared_data, monkeypatch):
    """On rows that nothing was fitted on."""
    from laconic.calibrate.corpus import read
    from laconic.progress import silent
    from laconic.recipe.flow import Sampling

    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    lm = load(str(shared_models / "minilm-sst2"))
    calibration = Sampling(samples=48).of(lm, read("glue/sst2", "train"), silent)
    judges = Sampling(samples=64, seed=1).of(lm, read("glue/sst2", "dev"), silent)
    found = {}
    for replace in ("nothing", "linear"):
        small = lm.twin()
        Shorten(blocks=(4,), replace=replace).apply(small, calibration)
        found[replace] = kl(small, lm, judges)
    assert found["linear"] < 0.5 * found["nothing"]
