"""Test matrices with all statistics: random, singular, with dead channels, and in half precision."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.calibrate import (
    STATISTICS,
    GradientStatistic,
    InputStatistic,
    LayerStats,
    Statistic,
)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Matrix:
    """One matrix and its statistics.

    Args:
        name: its special property.
        weight: the matrix, (out, in).
        stats: its statistics, by default all of `laconic.calibrate.STATISTICS`.
        inputs: the inputs that they were computed from, (tokens, in).
        gradients: the gradients at the outputs, (tokens, out).

    Example:
        >>> from laconic.calibrate import InputCovariance
        >>> matrix = random_matrix("small", (2, 3))
        >>> matrix.name, matrix.weight.shape, matrix.stats[InputCovariance].matrix.shape
        ('small', torch.Size([2, 3]), torch.Size([3, 3]))
    """

    name: str
    weight: Tensor
    stats: LayerStats
    inputs: Tensor | None = None
    gradients: Tensor | None = None

    @classmethod
    def of(cls, name: str, weight: Tensor, inputs: Tensor, gradients: Tensor) -> "Matrix":
        """Make a matrix with all of `laconic.calibrate.STATISTICS`; the arguments are its fields."""
        return cls(name, weight, stats_of(inputs, gradients), inputs, gradients)

    def with_kinds(self, kinds: Iterable[type[Statistic]]) -> "Matrix":
        """Add the statistics of a plug-in, computed from `inputs` and `gradients`.

        Args:
            kinds: the types of statistics; those that the matrix has are not computed again.

        Returns:
            The matrix itself if it has all of them.
        """
        missing = [kind for kind in kinds if kind not in self.stats]
        if not missing:
            return self
        assert self.inputs is not None and self.gradients is not None, "only `of` makes a matrix with inputs"
        stats = self.stats | stats_of(self.inputs, self.gradients, kinds=missing)
        return Matrix(self.name, self.weight, stats, self.inputs, self.gradients)


def stats_of(x: Tensor, g: Tensor, sequences: int = 4, kinds: Iterable[type[Statistic]] | None = None) -> LayerStats:
    """Compute statistics of a layer from its inputs and the gradients at its outputs.

    Args:
        x: inputs, (tokens, in).
        g: gradients, (tokens, out).
        sequences: the number of sequences of equal length in the tokens.
        kinds: the types of statistics; None for all of `laconic.calibrate.STATISTICS`.

    Example:
        >>> from laconic.calibrate import GradCovariance, InputCovariance
        >>> stats = stats_of(torch.ones(8, 3), torch.ones(8, 2))
        >>> stats[InputCovariance].matrix.shape, stats[GradCovariance].matrix.shape
        (torch.Size([3, 3]), torch.Size([2, 2]))
    """
    shape = (g.shape[1], x.shape[1])
    collected: list[Statistic] = []
    for kind in STATISTICS if kinds is None else kinds:
        if issubclass(kind, InputStatistic):
            of_inputs = kind.empty(shape[1], False, CPU)
            of_inputs.update(x)
            collected.append(of_inputs)
        elif issubclass(kind, GradientStatistic):
            of_gradients = kind.empty(shape, CPU)
            for x_part, g_part in zip(x.chunk(sequences), g.chunk(sequences), strict=True):
                of_gradients.update(x_part, g_part)
            of_gradients.count = sequences
            collected.append(of_gradients)
    return LayerStats(collected)


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
    return Matrix.of(name, weight.to(dtype), x.to(exact), g.to(exact))


def _dead() -> Matrix:
    base = random_matrix("dead channels", (24, 40))
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(200, 40, generator=generator), torch.randn(200, 24, generator=generator)
    x[:, :7] = 0
    g[:, 3:9] = 0
    return Matrix.of(base.name, base.weight, x, g)


MATRICES = (
    random_matrix("wide", (24, 40)),
    random_matrix("tall", (40, 24)),
    random_matrix("square, singular moment", (32, 32), tokens=12),
    _dead(),
    Matrix.of("nothing seen", random_matrix("", (24, 40)).weight, torch.zeros(8, 40), torch.zeros(8, 24)),
    random_matrix("half precision", (24, 40), dtype=torch.float16),
)
"""The matrices that `check_method` uses."""
