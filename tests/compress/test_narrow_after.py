"""Narrowing what earlier steps have shortened: a part of a block that is gone has no heads and no channels."""

from pathlib import Path

import pytest
import torch

from laconic.compress import Compress, Narrow, Shorten
from laconic.errors import UserError
from laconic.methods import Svd
from laconic.model import Group, LanguageModel
from laconic.model.prunable_group import prunable_groups
from laconic.model.width import keep_parts, update_config_widths
from laconic.store import materialize, save
from tests.architectures import BY_NAME, HEADS, INNER, outputs
from tests.compress.test_narrow import data_for
from tests.narrow import counts

GONE = ("0.attention", "1.ffn")


def comes_back(lm: LanguageModel, folder: Path) -> bool:
    save(lm, folder)
    return torch.equal(outputs(type(lm.model).from_pretrained(folder)), outputs(lm.model))


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("sizes", [{"heads": 0.5, "channels": 0.5}, {"keep": 0.6}, {"channels": 0.5, "anchored": True}])
def test_what_is_left_of_a_block_narrows(name: str, sizes: dict, tmp_path: Path) -> None:
    lm = BY_NAME[name].lm()
    data = data_for(lm)
    Shorten(blocks=GONE).apply(lm, None)
    outcome = Narrow(**sizes).apply(lm, data)
    assert outcome.nbytes < outcome.dense_nbytes
    assert len(counts(lm, Group.ATTENTION)) == len(counts(lm, Group.FFN)) == 1
    # A budget for both may come from the heads alone, where they are worth less.
    assert counts(lm, Group.FFN)[0] < INNER or (sizes.get("keep") and counts(lm, Group.ATTENTION)[0] < HEADS)
    assert comes_back(lm, tmp_path / "out")
    dense = materialize(lm.model)
    torch.testing.assert_close(outputs(dense), outputs(lm.model), rtol=1e-4, atol=1e-5)


def test_a_dropped_attention_that_shares_its_position_bias_keeps_the_heads() -> None:
    lm = BY_NAME["t5"].lm()
    Shorten(blocks={"encoder": ("1.attention",), "decoder": ("0.ffn",)}).apply(lm, None)
    Narrow(channels=0.5).check(lm)
    with pytest.raises(UserError, match=r"'encoder.block.1.layer.0.SelfAttention' is dropped, and shares its position"):
        Narrow(heads=0.5).check(lm)


def test_a_number_is_not_said_for_blocks_that_have_another(tmp_path: Path) -> None:
    """One of two feed-forwards is stored as factors of the old width, so the class cannot build the narrow other."""
    lm = BY_NAME["llama"].lm()
    first = prunable_groups(lm, (Group.FFN,))[0]
    keep_parts(lm, first, range(INNER // 2))
    update_config_widths(lm)
    Compress(method=Svd(rank=4), targets=("*.1.mlp.*",)).apply(lm, None)
    Narrow(heads=0.5).apply(lm, data_for(lm))
    assert lm.model.config.intermediate_size == INNER
    assert lm.model.config.num_attention_heads == HEADS // 2
    assert comes_back(lm, tmp_path / "out")
    torch.testing.assert_close(outputs(materialize(lm.model)), outputs(lm.model), rtol=1e-4, atol=1e-5)
