"""Prepare a model for export: replace each quantized layer by a module with operators that the runtime supports.

Other formats are traced unchanged: low-rank layers, sums of two formats, pruned and narrowed layers. A layer with a
codebook (levels that are not evenly spaced) is exported as a dense matrix.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from laconic.formats import DynamicInt8, PackedCodes, PackedEmbedding, Quantized
from laconic.formats.int8 import FULL, int8_product
from laconic.model import LanguageModel
from laconic.numerics.packing import from_bytes
from laconic.runtime.engines import ONNX
from laconic.runtime.portable_experts import unroll_experts
from laconic.runtime.portable_layers import (
    AffineCodes,
    CodedLookup,
    Dequantized,
    DequantizeLinear,
    MatMulInteger,
    MatMulNBits,
    Portable,
)

DENSE = "codes, written out dense"


@dataclass(frozen=True)
class ExportedLayers:
    """The quantized layers that were exported as the same kind of module.

    Args:
        count: the number of layers.
        stored_bytes: their bytes as laconic stores them.
        bytes: their bytes in the exported file.
    """

    count: int
    stored_bytes: int
    bytes: int


def to_portable(lm: LanguageModel, runtime: str) -> tuple[LanguageModel, dict[str, ExportedLayers]]:
    """Make a copy of a model that can be traced for a runtime.

    Args:
        lm: the model; the copy shares its tensors, except those of quantized layers.
        runtime: `ONNX` or `OPENVINO`.

    Returns:
        The copy, and a summary of its quantized layers by the label of the module that replaced them.
    """
    twin = lm.shallow_copy()
    unroll_experts(twin)
    layers: dict[str, ExportedLayers] = {}
    for module, paths in coded_layers(twin):
        replacement = _replacement(module, runtime)
        if isinstance(replacement, Portable):
            label, nbytes = replacement.label, replacement.nbytes
        else:
            label, nbytes = DENSE, replacement.get_parameter("weight").nbytes
        total = layers.get(label, ExportedLayers(0, 0, 0))
        layers[label] = ExportedLayers(total.count + 1, total.stored_bytes + module.nbytes(), total.bytes + nbytes)
        for path in paths:
            twin.model.set_submodule(path, replacement.eval())
    return twin, layers


def to_exact(lm: LanguageModel, runtime: str) -> LanguageModel:
    """A copy of a model that computes in torch the expected outputs of the exported model.

    Quantized layers are computed without the optimized kernels of this machine.

    Args:
        lm: the model; the copy shares its tensors.
        runtime: `ONNX` or `OPENVINO`; the ONNX model rounds the inputs of dynamic int8 layers.
    """
    twin = lm.shallow_copy()
    unroll_experts(twin)
    for module, paths in coded_layers(twin):
        if isinstance(module, PackedCodes):
            for path in paths:
                twin.model.set_submodule(path, ExactLayer(module, round_inputs=runtime == ONNX))
    return twin


class ExactLayer(nn.Module):
    """A quantized layer computed as a reference: by its dense matrix, or for dynamic int8 by exact integer sums.

    Args:
        layer: the quantized layer.
        round_inputs: whether a dynamic int8 layer rounds its inputs, as the ONNX model does.
    """

    def __init__(self, layer: PackedCodes, round_inputs: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0))
        self.layer, self.round_inputs = layer, round_inputs

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if not (self.round_inputs and isinstance(self.layer, DynamicInt8)):
            return linear(x, self.layer.dense(), self.layer.bias)
        y = int8_product(x.reshape(-1, x.shape[-1]), *self.layer.matrix, FULL).view(*x.shape[:-1], -1)
        return y if self.layer.bias is None else y + self.layer.bias


def coded_layers(lm: LanguageModel) -> Iterator[tuple[PackedCodes | PackedEmbedding, list[str]]]:
    """Each quantized layer or embedding with all its paths. The layer inside a quantized embedding is left out."""
    paths: dict[PackedCodes | PackedEmbedding, list[str]] = {}
    inside: Counter[nn.Module] = Counter()
    for name, module in lm.model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedEmbedding):
            inside[module.coded] += 1
        if isinstance(module, (PackedCodes, PackedEmbedding)):
            paths.setdefault(module, []).append(name)
    yield from ((module, names) for module, names in paths.items() if not inside[module])


def affine_codes(layer: PackedCodes) -> AffineCodes | None:
    """The unpacked codes of a layer; None if its levels are not evenly spaced. A pruned weight has the zero point."""
    if isinstance(layer, DynamicInt8):
        codes, scale = layer.matrix
        unsigned = (codes.to(torch.int16) + 128).to(torch.uint8)
        return AffineCodes(unsigned, scale[:, None], torch.full_like(scale[:, None], 128), 8, layer.in_features, None)
    if not isinstance(layer, Quantized):
        return None
    scale, zero, bits, group, _ = layer.grid
    rows, width = layer.shape
    group = width if group is None else min(group, width)
    scale, zero = (numbers.expand(rows, -1).contiguous() for numbers in (scale, zero))
    codes, mask = layer.unpack_codes(), layer.support
    if mask is not None:
        codes = torch.where(mask, codes, zero.repeat_interleave(group, dim=1)[:, :width].to(torch.uint8))
    columns = None if layer.column_scales is None else from_bytes(layer.column_scales.detach())
    return AffineCodes(codes, scale, zero, bits, group, columns)


def _replacement(module: PackedCodes | PackedEmbedding, runtime: str) -> nn.Module:
    is_embedding = isinstance(module, PackedEmbedding)
    codes = affine_codes(module.coded if isinstance(module, PackedEmbedding) else module)
    if codes is None:
        return _dense(module)
    if is_embedding:
        return CodedLookup(codes)
    if isinstance(module, DynamicInt8):
        return (MatMulInteger if runtime == ONNX else DequantizeLinear)(module.matrix, module.bias)
    block = codes.block if runtime == ONNX else None
    return Dequantized(codes, module.bias) if block is None else MatMulNBits(codes, block, module.bias)


@torch.no_grad()
def _dense(module: PackedCodes | PackedEmbedding) -> nn.Module:
    """A plain linear or embedding with the same matrix."""
    out, width = module.shape
    is_embedding = isinstance(module, PackedEmbedding)
    with torch.device("meta"):
        plain = nn.Embedding(width, out, module.padding_idx) if is_embedding else nn.Linear(width, out, bias=False)
    dense = module.dense().T if is_embedding else module.dense()
    plain.weight = nn.Parameter(dense.contiguous(), requires_grad=False)
    if module.bias is not None:
        plain.register_parameter("bias", nn.Parameter(module.bias.detach(), requires_grad=False))
    return plain
