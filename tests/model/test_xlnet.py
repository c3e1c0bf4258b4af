"""XLNet makes its projections on the CPU whatever the device is, and multiplies by them outside of linear layers."""

from pathlib import Path

import pytest
import torch
import transformers as hf

import laconic
from laconic.errors import UserError
from laconic.model import LanguageModel, load, load_empty
from laconic.model.stock import build_empty
from tests.architectures import SMALL, Architecture, outputs
from tests.tokens import letters

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
SIZES = {"vocab_size": 50, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, **SMALL}
DENSE = 10560 / 16704
"""The projections and biases of the attentions, among all matrices of the blocks."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = Architecture("xlnet", lambda: hf.XLNetLMHeadModel(hf.XLNetConfig(**SIZES))).model()
    model.save_pretrained(tmp_path / "xlnet")
    letters().save_pretrained(tmp_path / "xlnet")
    return tmp_path / "xlnet"


def test_every_parameter_is_on_the_meta_device(folder: Path) -> None:
    assert all(parameter.is_meta for parameter in load_empty(str(folder)).model.parameters())
    model = load(str(folder)).model
    empty = build_empty(type(model), model.config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    shapes = {name: (tensor.shape, tensor.requires_grad) for name, tensor in model.named_parameters()}
    assert {name: (tensor.shape, tensor.requires_grad) for name, tensor in empty.named_parameters()} == shapes


def test_a_folder_is_refused_with_the_share_that_would_stay_dense(folder: Path) -> None:
    assert LanguageModel.of(load(str(folder)).model).coverage().share == pytest.approx(DENSE)
    with pytest.raises(UserError, match=rf"{DENSE:.1%} of the parameters that attention, ffn select.*rel_attn.q"):
        laconic.compress(folder, "kfac-svd", data=["abc de", "f g h"])


def test_the_rest_of_a_folder_is_compressed_and_reloads(folder: Path, tmp_path: Path) -> None:
    result = laconic.compress(folder, "kfac-svd", data=["abc de", "f g h"], allow_dense=True, output=tmp_path / "small")
    assert result.sites and all(".ff.layer_" in name for name in result.sites)
    assert torch.equal(outputs(load(str(tmp_path / "small")).model), outputs(result.model))
    longer = ["abc def ghi jkl mno pqr stu " * 3]
    assert laconic.evaluate(result.model, batch=1, length=8).cost is not None
    assert laconic.compress(folder, "rtn:bits=8", data=longer, allow_dense=True, max_length=64).bytes > 0
