"""Test matrices with all statistics: random, singular, with dead channels, and in half precision."""

from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.calibrate import AbsMean, Fisher, GradCovariance, InputCovariance, LayerStats, Mean

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Matrix:
    """One matrix and its statistics.

    Args:
        name: its special property.
        weight: the matrix, (out, in).
        stats: all statistics that the methods of laconic need.

    Example:
        >>> matrix = random_matrix("small", (2, 3))
        >>> matrix.name, matrix.weight.shape, matrix.stats[InputCovariance].matrix.shape
        ('small', torch.Size([2, 3]), torch.Size([3, 3]))
    """

    name: str
    weight: Tensor
    stats: LayerStats


def stats_of(x: Tensor, g: Tensor, sequences: int = 4) -> LayerStats:
    """Compute all statistics of a layer from its inputs and the gradients at its outputs.

    Args:
        x: inputs, (tokens, in).
        g: gradients, (tokens, out).
        sequences: the number of sequences of equal length in the tokens.

    Example:
        >>> stats = stats_of(torch.ones(8, 3), torch.ones(8, 2))
        >>> stats[InputCovariance].matrix.shape, stats[GradCovariance].matrix.shape
        (torch.Size([3, 3]), torch.Size([2, 2]))
    """
    shape = (g.shape[1], x.shape[1])
    inputs = [kind.empty(shape[1], False, CPU) for kind in (InputCovariance, Mean, AbsMean)]
    for statistic in inputs:
        statistic.update(x)
    output, fisher = GradCovariance.empty(shape, CPU), Fisher.empty(shape, CPU)
    output.update(x, g)
    for x_part, g_part in zip(x.chunk(sequences), g.chunk(sequences), strict=True):
        fisher.update(x_part, g_part)
    output.count = fisher.count = sequences
    return LayerStats([*inputs, output, fisher])


def random_matrix(name: str, shape: tuple[int, int], tokens: int = 400, dtype: torch.dtype = torch.float32) -> Matrix:
    """Make a random matrix with correlated inputs and gradients of uneven size. It depends only on the shape.

    Args:
        name: its name.
        shape: (out, in).
        tokens: the number of inputs for its statistics.
        dtype: the dtype of the matrix.

    Example:
        >>> first, second = random_matrix("a", (2, 3)), random_matrix("b", (2, 3))
        >>> torch.equal(first.weight, second.weight)
        True
    """
    m, n = shape
    generator = torch.Generator().manual_seed(m * 1000 + n)
    mixing = torch.randn(n, n, generator=generator) / n**0.5
    x = torch.randn(tokens, n, generator=generator) @ mixing * torch.linspace(0.1, 3, n)
    g = torch.randn(tokens, m, generator=generator) * torch.linspace(2, 0.05, m)
    weight = torch.randn(m, n, generator=generator) / n**0.5
    exact = torch.promote_types(dtype, torch.float32)
    return Matrix(name, weight.to(dtype), stats_of(x.to(exact), g.to(exact)))


def _dead() -> Matrix:
    base = random_matrix("dead channels", (24, 40))
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(200, 40, generator=generator), torch.randn(200, 24, generator=generator)
    x[:, :7] = 0
    g[:, 3:9] = 0
    return Matrix(base.name, base.weight, stats_of(x, g))


MATRICES = (
    random_matrix("wide", (24, 40)),
    random_matrix("tall", (40, 24)),
    random_matrix("square, singular moment", (32, 32), tokens=12),
    _dead(),
    Matrix("nothing seen", random_matrix("", (24, 40)).weight, stats_of(torch.zeros(8, 40), torch.zeros(8, 24))),
    random_matrix("half precision", (24, 40), dtype=torch.float16),
)
"""The matrices that `check_method` uses."""
