"""Matrices with everything known of them, for tests of methods: random, singular, dead, half precision."""

from dataclasses import dataclass

import torch

from laconic.calibrate import AbsMean, Fisher, GradCovariance, InputCovariance, LayerStats, Mean

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One matrix and its statistics."""

    name: str
    weight: torch.Tensor
    stats: LayerStats


def stats_of(x: torch.Tensor, g: torch.Tensor, sequences: int = 4) -> LayerStats:
    """Every statistic of a layer that saw inputs `x` (tokens, in) and gradients `g` (tokens, out)."""
    shape = (g.shape[1], x.shape[1])
    gram, mean = InputCovariance.empty(shape[1], False, CPU), Mean.empty(shape[1], False, CPU)
    output, fisher = GradCovariance.empty(shape, CPU), Fisher.empty(shape, CPU)
    absolute = AbsMean.empty(shape[1], False, CPU)
    gram.update(x)
    mean.update(x)
    absolute.update(x)
    output.update(x, g)
    for x_part, g_part in zip(x.chunk(sequences), g.chunk(sequences), strict=True):
        fisher.update(x_part, g_part)
    output.count = fisher.count = sequences
    return LayerStats([gram, mean, absolute, output, fisher])


def case(name: str, shape: tuple[int, int], tokens: int = 400, dtype: torch.dtype = torch.float32) -> Case:
    """A random matrix with correlated inputs and gradients of uneven size."""
    m, n = shape
    generator = torch.Generator().manual_seed(m * 1000 + n)
    mixing = torch.randn(n, n, generator=generator) / n**0.5
    x = torch.randn(tokens, n, generator=generator) @ mixing * torch.linspace(0.1, 3, n)
    g = torch.randn(tokens, m, generator=generator) * torch.linspace(2, 0.05, m)
    weight = torch.randn(m, n, generator=generator) / n**0.5
    exact = torch.promote_types(dtype, torch.float32)
    return Case(name, weight.to(dtype), stats_of(x.to(exact), g.to(exact)))


def _dead() -> Case:
    base = case("dead channels", (24, 40))
    x, g = torch.randn(200, 40), torch.randn(200, 24)
    x[:, :7] = 0
    g[:, 3:9] = 0
    return Case(base.name, base.weight, stats_of(x, g))


CASES = (
    case("wide", (24, 40)),
    case("tall", (40, 24)),
    case("square, singular moment", (32, 32), tokens=12),
    _dead(),
    Case("nothing seen", torch.randn(24, 40), stats_of(torch.zeros(8, 40), torch.zeros(8, 24))),
    case("half precision", (24, 40), dtype=torch.float16),
)
