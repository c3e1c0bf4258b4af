"""A streamed model computes what the loaded one computes, with each part in memory only while it runs."""

from pathlib import Path

import pytest
import torch

from laconic.model.loading import load, load_streamed
from laconic.model.loans_on_call import find_parts
from tests.architectures import outputs
from tests.loaned import MODELS, nbytes


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["llama-tied", "bert-masked", "t5", "mixtral"])
def test_a_streamed_model_computes_the_same(tmp_path: Path, name: str, keep: bool) -> None:
    MODELS[name]().save_pretrained(tmp_path)
    lm = load_streamed(str(tmp_path))
    before = nbytes(lm.model)
    with lm.loaned_on_call(keep=keep):
        assert torch.equal(outputs(lm.model), outputs(load(str(tmp_path)).model))
        assert (nbytes(lm.model) > before) == keep
    assert nbytes(lm.model) == before


def test_the_parts_of_a_model_are_its_blocks_and_what_is_on_disk_outside(tmp_path: Path) -> None:
    MODELS["llama"]().save_pretrained(tmp_path)
    lm = load_streamed(str(tmp_path))
    parts = find_parts(lm.model, lm.anatomy, lm.loans)
    assert parts == ["model.layers.0", "model.layers.1", "model.embed_tokens", "lm_head"]
