"""Errors of `narrow`: sizes, models and weights."""

import pytest
import torch

from laconic.compress import Compress, Narrow, Shorten
from laconic.errors import UserError
from laconic.methods import Svd
from laconic.model import LanguageModel
from laconic.model.prunable_group import prunable_groups
from tests.architectures import BY_NAME
from tests.compress.test_narrow import IMPORTANCES, data_for


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "needs a size: give narrow:heads=F, narrow:channels=F or both, or in place of them narrow:keep=F"),
        ({"heads": 0.5, "keep": 0.5}, "needs a size"),
        ({"heads": 0}, r"^narrow.heads must be in \(0, 1\]; got 0\.0\.$"),
        ({"channels": 1.5}, r"^narrow.channels must be in \(0, 1\]; got 1.5\.$"),
        ({"keep": 0.0}, r"^narrow.keep must be in \(0, 1\]; got 0.0\.$"),
        ({"heads": 0.5, "importance": "size"}, "importance must be 'magnitude', 'taylor', .*; got 'size'"),
        ({"heads": 0.5, "multiple": 0}, r"multiple must be in \[1, ∞\); got 0"),
        ({"heads": 0.5, "currency": "macs"}, "currency must be left out without keep"),
        ({"keep": 0.5, "ranking": "local"}, "ranking must be global or left out with keep"),
        ({"heads": 0.5, "anchored": True, "refit": False}, "anchored must be left out without refit"),
        ({"heads": 0.5, "ranking": "gobal"}, "ranking must be 'local' or 'global'; got 'gobal'"),
        ({"keep": 0.5, "currency": "flops"}, "currency must be 'bytes' or 'macs'; got 'flops'"),
        (
            {"heads": 0.5, "importance": "taylor", "refit": False, "sequential": True},
            "sequential has no effect, because importance: taylor without refit uses no inputs",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        Narrow(**arguments)


def test_what_cannot_be_done_is_one_sentence():
    lm = BY_NAME["t5"].lm()
    with pytest.raises(UserError, match="'narrow' needs calibration data"):
        Narrow(heads=0.5).apply(lm, None)
    with pytest.raises(UserError, match="Attentions of 't5' share a position bias"):
        Narrow(heads=0.5, anchored=True).check(lm)
    Narrow(channels=0.5, anchored=True).check(lm)
    with pytest.raises(UserError, match=r"^keep must be at least 0.2\d+, the size of the heads and channels"):
        Narrow(keep=0.1).check(lm)
    with pytest.raises(UserError, match="The heads of this 'led' cannot be removed one by one"):
        Narrow(keep=0.5).check(BY_NAME["led"].lm())
    Compress(method=Svd(rank=4), targets=("*.wo",)).apply(lm, None)
    with pytest.raises(UserError, match=r"'encoder.block.0.layer.1.DenseReluDense.wo' is compressed already"):
        Narrow(channels=0.5).check(lm)


def test_where_there_is_one_of_everything_is_one_sentence():
    """A single head cannot be removed; with channels in the same step it stays."""
    whole = BY_NAME["llama"].model()
    whole.config.num_attention_heads = whole.config.num_key_value_heads = 1
    lm = LanguageModel.of(type(whole)(whole.config))
    with pytest.raises(UserError, match=r"^No layer of this 'llama' has two or more heads, of"):
        Narrow(heads=0.5).check(lm)
    for several in (Narrow(heads=0.5, channels=0.5), Narrow(keep=0.5)):
        several.check(lm)
    gone = BY_NAME["gpt2"].lm()
    Shorten(blocks=("0.attention", "1.attention")).apply(gone, None)
    with pytest.raises(
        UserError,
        match=r"^The blocks of this 'gpt2' have no heads .*; narrow its channels, or compress its matrices\.$",
    ):
        Narrow(heads=0.5).check(gone)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_weights_that_are_not_finite_are_one_sentence(importance):
    lm = BY_NAME["gpt2"].lm()
    data = data_for(lm, 1)
    prunable_groups(lm)[0].writer.module.get_parameter("weight").data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"finite"):
        Narrow(heads=0.5, importance=importance, refit=False).apply(lm, data)
