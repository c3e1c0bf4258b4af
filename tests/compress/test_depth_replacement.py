"""Replacements of dropped blocks: a bias that is the exact mean, and maps in every kind of output projection."""

from dataclasses import replace as replaced

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.compress import Compress, Shorten
from laconic.compress.depth.cuts import Cut, all_cuts
from laconic.compress.depth.hidden_states import stack_hidden_states
from laconic.compress.depth.trial import drop_cuts, make_fitter
from laconic.compress.kl_metric import KLMetric
from laconic.errors import UserError
from laconic.formats import LowRank, Sparse
from laconic.methods import Svd
from laconic.model import load
from laconic.model.layers import find_layers
from tests.architectures import BY_NAME, outputs
from tests.compress.test_depth import NAMES, data_for, kl
from tests.model.test_depth import deep


@pytest.mark.parametrize("name", NAMES)
def test_a_bias_is_the_exact_mean(name: str) -> None:
    """The mean hidden state behind the run is that of the original, over the tokens that count."""
    lm = BY_NAME[name].lm()
    data = data_for(lm)
    small = lm.shallow_copy()
    layers = find_layers(lm)[-1]
    fits = make_fitter(lm, data, "bias")
    drop_cuts(small, [Cut(layers.name, 1)], fits, lm)
    means = []
    for model in (lm, small):
        total, count = 0, 0
        for batch in data.batches:
            found = stack_hidden_states(model, batch, all_cuts(model, "blocks"))
            points, rows = found[layers.name]
            total, count = total + rows.without_padding(points[-1]).double().sum(0), count + int(rows.counted.sum())
        means.append(total / count)
    assert torch.allclose(*means, atol=1e-4)


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "gemma2", "t5", "opt-norm-after", "bart"])
def test_a_map_helps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a norm, in a matrix with a bias and in one without."""
    lm = deep(name, monkeypatch)
    data = data_for(lm, 8)
    twins = {replace: lm.shallow_copy() for replace in ("nothing", "linear")}
    for replace, twin in twins.items():
        blocks = (1,) if len(find_layers(lm)) == 1 else {"decoder": (1,)}
        Shorten(blocks=blocks, replace=replace).apply(twin, data)
    assert kl(twins["linear"], lm, data) < kl(twins["nothing"], lm, data)


def test_a_map_sits_where_something_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block without its feed-forward has its map after the attention; a constant has no map but a constant."""
    lm = deep("gpt2", monkeypatch)
    data = data_for(lm, 8)
    Shorten(blocks=("0.ffn",), replace="bias").apply(lm, data)
    before = lm.model.get_submodule("transformer.h.0.attn.c_proj").get_parameter("weight").clone()
    found = {}
    for replace in ("bias", "linear"):
        small = lm.shallow_copy()
        Shorten(blocks=(1,), replace=replace).apply(small, data)
        found[replace] = kl(small, lm, data)
    mapped = small.model.get_submodule("transformer.h.0.attn.c_proj").get_parameter("weight")
    assert not torch.equal(mapped, before) and found["linear"] < found["bias"]


@pytest.mark.parametrize("replace", ["bias", "linear"])
@pytest.mark.parametrize("name", ["gpt2", "bert-classifier"])
def test_what_does_not_help_on_other_rows_stays_out(name: str, replace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement is fitted on one half of the rows and judged on the other, each in turn."""
    lm = deep(name, monkeypatch)
    data = data_for(lm, 8)
    halves = [replaced(data, batches=data.batches[::2]), replaced(data, batches=data.batches[1::2])]
    for block in range(len(find_layers(lm)[0])):
        cuts, sums = [Cut("blocks", block)], dict.fromkeys((replace, "nothing"), 0.0)
        if name == "gpt2" and not block:
            continue
        for fitted_on, judges in (halves, halves[::-1]):
            for kind in sums:
                small = lm.shallow_copy()
                drop_cuts(small, cuts, make_fitter(lm, fitted_on, kind), lm)
                sums[kind] += sum(KLMetric(lm, judges.batches).each(small).totals.tolist())
        small = lm.shallow_copy()
        found = Shorten(blocks=(block,), replace=replace).apply(small, data).found
        predictions = sum(KLMetric(lm, data.batches).each(small).counts.tolist())
        assert {kind: found[f"kl_{kind}"] for kind in sums} == pytest.approx(
            {kind: total / predictions for kind, total in sums.items()}
        )
        if found["kept"] != "nothing":
            assert found[f"kl_{replace}"] < found["kl_nothing"]
        expected = lm.shallow_copy()
        drop_cuts(expected, cuts, make_fitter(lm, data, found["kept"]), lm)
        assert torch.equal(outputs(small.model), outputs(expected.model))


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_too_few_to_be_taken_apart_judge_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = deep("gpt2", monkeypatch)
    batch = {name: tensor[:rows] for name, tensor in data_for(lm, 1).batches[0].items()}
    assert len(batch["input_ids"]) == min(rows, 2)
    outcome = Shorten(blocks=(1,), replace="bias").apply(lm, Calibration([batch]))
    assert outcome.found == {}


def test_one_batch_is_taken_apart_by_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = deep("gpt2", monkeypatch)
    batches = data_for(lm, 8).batches
    one = Calibration([{name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}])
    for select in ("taylor", "dp"):
        found = Shorten(drop=1, select=select, replace="linear").apply(lm.shallow_copy(), one).found
        assert found["kept"] in ("linear", "nothing") and found["kl_linear"] != found["kl_nothing"]


def test_compressed_blocks_take_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the factor that writes, which keeps its size; what is sparse says so."""
    lm = deep("gpt2", monkeypatch)
    sparse = lm.shallow_copy()
    Compress(method=Svd(rank=12)).apply(lm, None)
    data = data_for(lm)
    original = lm.shallow_copy()
    outcome = Shorten(blocks=(1,), replace="linear").apply(lm, data)
    assert isinstance(lm.model.get_submodule("transformer.h.0.mlp.c_proj"), LowRank)
    nothing = original.shallow_copy()
    Shorten(blocks=(1,)).apply(nothing, data)
    assert kl(lm, original, data) < kl(nothing, original, data)
    assert outcome.nbytes * 4 == outcome.dense_nbytes * 3
    site = next(site for site in sparse.sites() if site.name == "transformer.h.0.mlp.c_proj")
    sparse.replace(site, Sparse.from_dense(site.weight() * (site.weight() > 0), site.weight() > 0))
    Shorten(blocks=(1,), replace="bias").apply(sparse.shallow_copy(), data)
    with pytest.raises(UserError, match=r"'transformer.h.0.mlp.c_proj', which is stored as 'sparse'; put shorten"):
        Shorten(blocks=(1,), replace="linear").apply(sparse, data)


@pytest.mark.slow
def test_a_map_helps_a_real_model(shared_models, shared_data, monkeypatch):
    """On rows that nothing was fitted on."""
    from laconic.calibrate.sources import read
    from laconic.progress import silent
    from laconic.recipe.sampling import Sampling

    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    lm = load(str(shared_models / "minilm-sst2"))
    calibration = Sampling(samples=48).of(lm, read("glue/sst2", "train"), silent)
    judges = Sampling(samples=64, seed=1).of(lm, read("glue/sst2", "dev"), silent)
    found = {}
    for replace in ("nothing", "linear"):
        small = lm.shallow_copy()
        Shorten(blocks=(4,), replace=replace).apply(small, calibration)
        found[replace] = kl(small, lm, judges)
    assert found["linear"] < 0.5 * found["nothing"]


@pytest.mark.slow
def test_a_bias_does_not_take_a_real_llama_further_away(shared_models, shared_data, monkeypatch):
    """The mean that its second block adds is no help to most predictions, though the states come nearer by it."""
    from laconic.calibrate.sources import read
    from laconic.progress import silent
    from laconic.recipe.sampling import Sampling

    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    lm = load(str(shared_models / "mico-tinyllama-1m"))
    corpus = read("tinystories", "train")
    first, last = (replaced(corpus, examples=corpus.examples[part]) for part in (slice(500), slice(-40, None)))
    calibration = Sampling(samples=32).of(lm, first, silent)
    judge = KLMetric(lm, Sampling(samples=40).of(lm, last, silent).batches)
    fitted, kept, nothing = lm.shallow_copy(), lm.shallow_copy(), lm.shallow_copy()
    drop_cuts(fitted, [Cut("blocks", 1)], make_fitter(lm, calibration, "bias"), lm)
    assert Shorten(blocks=(1,), replace="bias").apply(kept, calibration).found["kept"] == "nothing"
    Shorten(blocks=(1,)).apply(nothing, calibration)
    assert judge(kept) == judge(nothing) < judge(fitted)
