"""Blocks and parts of blocks dropped from whole models: bytes, padding, and sentences where it cannot be."""

import pytest
import torch
from torch import nn

from laconic.calibrate import Calibration
from laconic.compress import Compress, Shorten
from laconic.errors import UserError
from laconic.formats import Constant, LinearReplacement
from laconic.methods import Svd
from laconic.model import LanguageModel, divergence, predict
from tests.architectures import BY_NAME, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.model.test_depth import deep

NAMES = ["bert-classifier", "gpt2", "gemma2", "opt", "t5", "bart", "longformer-masked"]


def data_for(lm: LanguageModel, count: int = 6) -> Calibration:
    return Calibration(labelled_batches(lm, count))


def kl(lm: LanguageModel, original: LanguageModel, data: Calibration) -> float:
    with torch.no_grad():
        parts = [divergence(predict(original, b)[0], predict(lm, b)[0]) for b in data.batches]
    return torch.cat(parts).mean().item()


def test_bytes_are_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = deep("bert-classifier", monkeypatch)
    whole = lm.stored_nbytes(lm.sites(("blocks",)))
    data = data_for(lm)
    outcome = Shorten(blocks=(1, 2), replace="linear").apply(lm, data)
    assert outcome.before == whole
    left = sum(lm.stored_nbytes(lm.sites(("blocks",))).values())
    (mapped,) = [module for module in lm.model.modules() if isinstance(module, LinearReplacement)]
    assert outcome.nbytes == left + mapped.nbytes() == left + 4 * 32 * 32
    again = Compress(method=Svd(rank=4)).apply(lm, None)
    assert again.dense_nbytes == left


def test_sublayers_are_counted_by_themselves() -> None:
    lm = BY_NAME["t5"].lm()
    data = data_for(lm)
    outcome = Shorten(drop=2, parts="sublayers", select="greedy").apply(lm, data)
    assert sum(len(blocks) for blocks in outcome.dropped.values()) == 2
    assert sum(isinstance(module, Constant) for module in lm.model.modules()) >= 2 * 2
    assert outcome.nbytes == sum(lm.stored_nbytes(lm.sites(("blocks",))).values())
    before = outputs(lm.model)
    with pytest.raises(UserError, match=r"^The \S+ of block \d is dropped already; leave out '\d.\S+'\.$"):
        Shorten(blocks={stack: blocks for stack, blocks in outcome.dropped.items()}).apply(lm, None)
    assert torch.equal(outputs(lm.model), before)


@pytest.mark.parametrize("name", ["gpt2", "bert-classifier"])
@pytest.mark.parametrize("select", ["influence", "angular", "taylor", "greedy", "dp", "last"])
def test_what_is_gone_is_not_dropped_again(name: str, select: str) -> None:
    """One sub-block of four after another, until one is left."""
    lm = BY_NAME[name].lm()
    data = data_for(lm, 4)
    step = Shorten(drop=1, parts="sublayers", select=select, replace="bias")
    gone = [step.apply(lm, data).dropped["blocks"] for _ in range(3)]
    assert len(set(gone)) == 3
    assert outputs(lm.model).isfinite().all()
    with pytest.raises(UserError, match="drop must be at most 0"):
        step.check(lm)


@pytest.mark.parametrize("select", ["influence", "angular", "taylor", "greedy", "dp"])
def test_models_may_compute_in_half_precision(select: str) -> None:
    model = BY_NAME["bert-classifier"].model().bfloat16()
    lm = LanguageModel.of(model)
    Shorten(drop=1, select=select, replace="linear").apply(lm, data_for(lm))
    assert outputs(lm.model).dtype == torch.bfloat16 and outputs(lm.model).isfinite().all()
    parts = LanguageModel.of(BY_NAME["gpt2"].model().bfloat16())
    Shorten(drop=1, select=select, parts="sublayers").apply(parts, data_for(parts))
    assert outputs(parts.model).isfinite().all()


def test_nothing_dropped_is_the_model_as_it_is() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    before = outputs(lm.model)
    step = Shorten(drop=0, replace="linear")
    assert not step.needs_data
    outcome = step.apply(lm, None)
    assert torch.equal(outputs(lm.model), before)
    assert outcome.nbytes == outcome.dense_nbytes and not outcome.dropped


def test_padding_changes_nothing() -> None:
    """Texts padded further choose and fit the same."""
    lm = BY_NAME["bert-classifier"].lm()
    batches = labelled_batches(lm, 4)
    wider = [{name: nn.functional.pad(tensor, (0, 3)) for name, tensor in batch.items()} for batch in batches]
    found = []
    for data in (Calibration(batches), Calibration(wider)):
        small = lm.shallow_copy()
        Shorten(drop=1, replace="linear").apply(small, data)
        found.append(outputs(small.model))
    assert torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("bert-base", {}, "give either shorten:drop=N or shorten:blocks="),
        ("bert-base", {"drop": 1, "blocks": (0,)}, "give either shorten:drop=N or shorten:blocks="),
        ("bert-base", {"drop": 2}, r"drop must be at most 1, because one block stays in the model; got 2\."),
        ("bert-base", {"drop": -1}, r"drop must be in \[0, ∞\); got -1\."),
        ("bert-base", {"drop": 4, "parts": "sublayers"}, "drop must be at most 3, because one sub-block stays in the"),
        ("bert-base", {"blocks": (0, 1)}, "All 2 blocks of the model would be dropped"),
        ("bert-base", {"blocks": (7,)}, "There is no block '7': they are numbered from 0 to 1"),
        ("bert-base", {"blocks": ("1.mlp",)}, "There is no part 'mlp' in block 1: known are attention, ffn"),
        ("bert-base", {"blocks": (1, "1.ffn")}, "'1.ffn' must be left out"),
        ("bert-base", {"blocks": (1,), "select": "last"}, "must be left out if blocks is given"),
        ("bert-base", {"drop": 1, "parts": "sublayers", "replace": "linear"}, "replace must be nothing or bias"),
        ("bert-base", {"blocks": ("1.ffn",), "replace": "linear"}, "replace must be nothing or bias"),
        ("bert-base", {"drop": 1, "select": "infuence"}, "select must be 'influence', .*; got 'infuence'"),
        ("bert-base", {"drop": 1, "replace": "line"}, "replace must be 'nothing', 'bias' or 'linear'; got 'line'"),
        ("bert-base", {"drop": 1, "parts": "block"}, "parts must be 'blocks' or 'sublayers'; got 'block'"),
        ("modernbert-masked", {"drop": 1, "select": "first"}, "Block 0 of 'modernbert' must stay"),
        ("t5", {"drop": 1, "select": "first"}, "select: first drops from one stack"),
        ("t5", {"drop": {"encoder": 1}, "select": "last"}, "The decoder of 't5' would have more blocks"),
        ("bart", {"blocks": (0,)}, r"blocks must be given for each stack: \{encoder: \[...\], decoder: \[...\]\}"),
        ("bart", {"drop": {"encodr": 1}}, "There is no stack 'encodr': did you mean 'encoder'"),
        ("bart", {"drop": {"encoder": 2}}, "at most 1, because one block stays in the encoder; got 2"),
        ("t5", {"drop": {"encoder": 1}}, "The decoder of 't5' would have more blocks than the encoder"),
        ("albert-masked", {"drop": 1, "parts": "sublayers"}, "The layers of 'albert' share their block"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(name: str, arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Shorten(**arguments).check(BY_NAME[name].lm())


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("gpt2", {"blocks": (0,), "replace": "linear"}, "The first blocks of 'gpt2' cannot be replaced"),
        ("albert-masked", {"blocks": (1,), "replace": "bias"}, "Dropped blocks of 'albert' cannot be replaced"),
    ],
)
def test_what_cannot_be_done_here_is_one_sentence(name: str, arguments: dict, sentence: str) -> None:
    lm = BY_NAME[name].lm()
    before = outputs(lm.model)
    with pytest.raises(UserError, match=sentence):
        Shorten(**arguments).apply(lm, data_for(lm))
    assert torch.equal(outputs(lm.model), before)


@pytest.mark.parametrize("select", ["influence", "angular", "taylor", "greedy", "dp"])
def test_weights_that_are_not_finite_are_one_sentence(select: str) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    lm.model.get_parameter("bert.encoder.layer.1.output.dense.weight").data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"^The weights of 'bert.encoder.layer.1.output.dense.weight' are not finite"):
        Shorten(drop=1, select=select).apply(lm, data_for(lm))


def test_missing_data_is_one_sentence() -> None:
    with pytest.raises(UserError, match="'shorten' needs calibration data"):
        Shorten(drop=1).apply(BY_NAME["gpt2"].lm(), None)
    with pytest.raises(UserError, match="calibration data is empty"):
        Shorten(drop=1).apply(BY_NAME["gpt2"].lm(), Calibration([]))
