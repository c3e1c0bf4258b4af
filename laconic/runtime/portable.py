"""A model made ready to be exported: every layer of codes as a module that the other runtime has operators for.

Low ranks are two products, sums two formats, zeros zeros, and narrowed layers smaller ones: these are traced as they
are. A codebook is no evenly spaced grid, and is written out dense.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from laconic.formats import DynamicInt8, PackedCodes, PackedEmbedding
from laconic.formats.int8 import FULL, int8_product
from laconic.model import LanguageModel
from laconic.runtime.affine import affine_of
from laconic.runtime.extras import ONNX
from laconic.runtime.layers import Blocks, Integers, Portable, Scaled, Table, Unfolded

DENSE = "codes, written out dense"


@dataclass(frozen=True)
class Layers:
    """Layers of codes of one kind: how many, their bytes as laconic stores them, and in the exported file."""

    count: int
    stored_bytes: int
    bytes: int


def portable(lm: LanguageModel, runtime: str) -> tuple[LanguageModel, dict[str, Layers]]:
    """A twin of `lm` that can be traced for `runtime`, and what became of its layers of codes."""
    twin = lm.shallow_copy()
    found: dict[str, Layers] = {}
    for module, places in coded(twin):
        stand_in = _for_runtime(module, runtime)
        label = stand_in.label if isinstance(stand_in, Portable) else DENSE
        nbytes = stand_in.nbytes if isinstance(stand_in, Portable) else stand_in.get_parameter("weight").nbytes
        before = found.get(label, Layers(0, 0, 0))
        found[label] = Layers(before.count + 1, before.stored_bytes + module.nbytes(), before.bytes + nbytes)
        for place in places:
            twin.model.set_submodule(place, stand_in.eval())
    return twin, found


def exact(lm: LanguageModel, runtime: str) -> LanguageModel:
    """A twin of `lm` that computes in torch what the exported model should, whatever kernels this machine has."""
    twin = lm.shallow_copy()
    for module, places in coded(twin):
        if isinstance(module, PackedCodes):
            for place in places:
                twin.model.set_submodule(place, Exact(module, rounds=runtime == ONNX))
    return twin


class Exact(nn.Module):
    """A layer of codes multiplied out for each product; int8 for ONNX by whole numbers, their sums exact."""

    def __init__(self, layer: PackedCodes, rounds: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0))
        self.layer, self.rounds = layer, rounds

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if not (self.rounds and isinstance(self.layer, DynamicInt8)):
            return linear(x, self.layer.dense(), self.layer.bias)
        y = int8_product(x.reshape(-1, x.shape[-1]), *self.layer.matrix, FULL).view(*x.shape[:-1], -1)
        return y if self.layer.bias is None else y + self.layer.bias


def coded(lm: LanguageModel) -> Iterator[tuple[PackedCodes | PackedEmbedding, list[str]]]:
    """Every layer of codes with all its places; the codes inside an embedding are the embedding's."""
    places: dict[nn.Module, list[str]] = {}
    inside: Counter[nn.Module] = Counter()
    for name, module in lm.model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedEmbedding):
            inside[module.coded] += 1
        if isinstance(module, (PackedCodes, PackedEmbedding)):
            places.setdefault(module, []).append(name)
    for module, names in places.items():
        if isinstance(module, (PackedCodes, PackedEmbedding)) and not inside[module]:
            yield module, names


def _for_runtime(module: PackedCodes | PackedEmbedding, runtime: str) -> nn.Module:
    lookup = isinstance(module, PackedEmbedding)
    affine = affine_of(module.coded if isinstance(module, PackedEmbedding) else module)
    if affine is None:
        return _dense(module)
    if lookup:
        return Table(affine)
    if isinstance(module, DynamicInt8):
        return (Integers if runtime == ONNX else Scaled)(module.matrix, module.bias)
    block = affine.block if runtime == ONNX else None
    return Unfolded(affine, module.bias) if block is None else Blocks(affine, block, module.bias)


@torch.no_grad()
def _dense(module: PackedCodes | PackedEmbedding) -> nn.Module:
    """The plain module that computes the same."""
    out, width = module.shape
    with torch.device("meta"):
        lookup = isinstance(module, PackedEmbedding)
        plain = nn.Embedding(width, out, module.padding_idx) if lookup else nn.Linear(width, out, bias=False)
    plain.weight = nn.Parameter((module.dense().T if lookup else module.dense()).contiguous(), requires_grad=False)
    if module.bias is not None:
        plain.register_parameter("bias", nn.Parameter(module.bias.detach(), requires_grad=False))
    return plain
