"""Tensors are exchanged at every place of a model, and packed layers are made of what is stored."""

import copy

import torch
from torch import nn

from laconic.calibrate import LayerStats
from laconic.formats import Quantized, Sparse
from laconic.methods import Rtn
from laconic.model.loans_origins import find_tensors, packed_layers, substitute, tensors_below, to_placeholder
from tests.architectures import BY_NAME, outputs


def test_tied_tensors_stay_tied() -> None:
    model = BY_NAME["llama-tied"].model()
    expected = outputs(model)
    tensors = {id(tensor): tensor for _, _, tensor in tensors_below(model)}
    placeholders = {key: to_placeholder(tensor) for key, tensor in tensors.items()}
    assert substitute(model, placeholders) == tensors.keys()
    assert all(tensor.is_meta for _, _, tensor in tensors_below(model))
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")
    substitute(model, {id(placeholders[key]): tensor for key, tensor in tensors.items()})
    assert torch.equal(outputs(model), expected)


def test_a_pruned_layer_is_made_of_its_values_and_bits() -> None:
    weight = torch.randn(4, 6)
    layer = Sparse.from_dense(weight, weight > 0)
    layer.set_bias(torch.ones(4))
    model = nn.ModuleDict({"layer": layer})
    [packed] = packed_layers(model)
    assert packed.path == "layer"
    assert packed.stored.keys() == model.state_dict().keys()
    assert all(tensor.is_meta for tensor in packed.stored.values())
    unpacked = packed.unpack(model.state_dict())
    expected = dict(layer.named_parameters()) | dict(layer.named_buffers())
    assert unpacked.keys() == expected.keys()
    assert all(torch.equal(unpacked[name], tensor) for name, tensor in expected.items())


def test_each_tensor_is_found_once() -> None:
    model = BY_NAME["llama"].model()
    path = "model.layers.0.mlp.down_proj"
    weight = model.get_parameter(f"{path}.weight").detach()
    model.set_submodule(path, Sparse.from_dense(weight, weight > 0))
    found = find_tensors(model, model.state_dict(), packed_layers(model))
    computed = {id(tensor) for _, tensor in model.named_non_persistent_buffers()}
    sparse = model.get_submodule(path)
    expected = {id(tensor) for _, _, tensor in tensors_below(model)} - computed | {id(sparse.get_buffer("mask"))}
    assert sorted(id(tensor) for tensor, _, _ in found) == sorted(expected)


def test_kernels_are_dropped_with_the_codes_that_they_were_made_of() -> None:
    layer = Rtn(bits=4).compress(torch.randn(16, 32), LayerStats())
    assert isinstance(layer, Quantized)
    x = torch.randn(1, 32)
    expected = layer(x)
    names = layer.kernel_names
    other = copy.deepcopy(layer)
    substitute(layer, {id(tensor): to_placeholder(tensor) for tensor in layer.parameters()})
    assert layer.kernel_nbytes == 0
    assert not layer.kernel_names
    assert torch.equal(other(x), expected)
    assert other.kernel_names == names
