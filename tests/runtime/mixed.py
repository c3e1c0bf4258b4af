"""A tiny model with a format of every kind in it, so that one export tries them all."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from laconic.formats import Codebook, DynamicInt8, Format, LowRank, Quantized, Sparse, Sum
from laconic.model import LanguageModel
from laconic.numerics.grid import GridSpec, fit_grid, quantize
from laconic.runtime import ONNX
from laconic.runtime.graph import Graph, build_graph
from tests.architectures import BY_NAME


def quantized(bits: int, group: int | None, *, symmetric: bool = False, pruned: bool = False) -> Callable:
    """The matrix on grids of so many bits."""

    def of(weight: Tensor) -> Format:
        mask = weight.abs() > weight.abs().median() if pruned else None
        grid = fit_grid(weight, GridSpec(bits, group, symmetric), keep=mask)
        return Quantized.from_codes(quantize(weight, grid), grid, symmetric, mask=mask)

    return of


def scaled(weight: Tensor) -> Format:
    """With a scale for each column besides."""
    layer = quantized(4, 16)(weight)
    layer.scale_columns(torch.linspace(0.5, 2, weight.shape[1]))
    return layer


def int8(weight: Tensor, pruned: bool = False) -> Format:
    mask = weight.abs() > weight.abs().median() if pruned else None
    scale = (weight.abs().amax(1) / 127).half().float()
    return DynamicInt8.from_codes((weight / scale[:, None]).round().clamp(-128, 127).to(torch.int8), scale, mask=mask)


def codebook(weight: Tensor) -> Format:
    codes = torch.randint(0, 4, weight.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Codebook.from_codes(codes, torch.randn(weight.shape[0], 1, 4) / 6, group=weight.shape[1])


def lowrank(weight: Tensor) -> Format:
    U, S, V = torch.linalg.svd(weight, full_matrices=False)
    return LowRank.from_factors(U[:, :20] * S[:20], V[:20])


def coded_lowrank(weight: Tensor) -> Format:
    """Factors of codes, in groups that do not divide the rank."""
    layer = lowrank(weight)
    layer.left, layer.right = quantized(4, 16)(layer.left.weight), int8(layer.right.weight)
    return layer


def sparse(weight: Tensor) -> Format:
    return Sparse.from_dense(weight, weight.abs() > weight.abs().median())


def both(weight: Tensor) -> Format:
    return Sum.from_parts(quantized(2, 16)(weight), lowrank(weight))


EXACT = {
    "four bits": quantized(4, 16),
    "four bits, even": quantized(4, 16, symmetric=True),
    "three bits, pruned": quantized(3, 16, pruned=True),
    "four bits, one scale": quantized(4, None),
    "odd groups": quantized(4, 10),
    "six bits": quantized(6, 16),
    "eight bits, pruned": quantized(8, 16, symmetric=True, pruned=True),
    "columns": scaled,
    "codebook": codebook,
    "low rank": lowrank,
    "zeros": sparse,
    "sum": both,
}
"""Those that multiply by what they stand for, and by nothing else."""
ROUNDING = {"int8": int8, "int8, pruned": lambda weight: int8(weight, pruned=True), "factors of codes": coded_lowrank}


@torch.no_grad()
def mixed(lm: LanguageModel, makers: dict[str, Callable], embedding: Callable | None = None) -> LanguageModel:
    """Each of `makers` in turn at the matrices of `lm`, until all of them are replaced."""
    sites = lm.sites(("blocks",))
    assert len(sites) >= len(makers), "every format has to get its turn"
    several = list(makers.values())
    for number, site in enumerate(sites):
        lm.replace(site, several[number % len(several)](site.weight().contiguous()))
    for site in lm.sites(("embedding",)) if embedding else ():
        lm.replace(site, embedding(site.weight().contiguous()))
    return lm


@cache
def plain(name: str) -> tuple[LanguageModel, Graph]:
    """A tiny model and its graph, traced once for all tests. Without codes it is the same for both runtimes."""
    lm = BY_NAME[name].lm()
    return lm, build_graph(lm, ONNX)
