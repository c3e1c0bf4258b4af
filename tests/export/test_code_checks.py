"""Layers that no file of codes of another library holds are refused by both targets, before anything is written."""

import pytest
import torch

from laconic.errors import UserError
from laconic.export import check_target
from laconic.export.code_checks import quantized_layers
from laconic.formats import Quantized
from laconic.methods import Rtn
from laconic.model import LanguageModel
from laconic.model.stock import build_stock
from tests.export.served_models import compressed

pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")
TARGETS = ("gptq", "compressed-tensors")
PATH = "model.layers.0.mlp.down_proj"


def with_layer(scaled: bool, pruned: bool) -> LanguageModel:
    """A Llama of codes, one of whose layers is pruned or has scales of columns."""
    lm = compressed("llama", (Rtn(bits=4, group_size=32, symmetric=True), "blocks"))
    layer = lm.model.get_submodule(PATH)
    assert isinstance(layer, Quantized)
    if pruned:
        mask = torch.ones(layer.shape, dtype=torch.bool)
        mask[0, 0] = False
        layer = Quantized.from_codes(
            layer.matrix.unpacked_codes, layer.grid, symmetric=True, dtype=torch.float32, mask=mask
        )
        lm.model.set_submodule(PATH, layer)
    if scaled:
        layer.scale_columns(torch.linspace(0.5, 2, layer.in_features))
    return lm


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("scaled", "pruned", "sentence"),
    [
        (True, False, f"The layer '{PATH}' has a scale for each column, which this export does not store"),
        (False, True, f"The layer '{PATH}' is pruned and quantized, and this export has no mask of pruned weights"),
    ],
)
def test_a_layer_with_more_than_codes_and_scales_of_groups(
    target: str, scaled: bool, pruned: bool, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        check_target(target).check_model(with_layer(scaled, pruned))


def test_layers_of_codes_are_found_by_their_paths() -> None:
    lm = with_layer(scaled=False, pruned=False)
    found = dict(quantized_layers(lm.model, build_stock(lm.model)))
    assert found[PATH] is lm.model.get_submodule(PATH) and len(found) == 14
