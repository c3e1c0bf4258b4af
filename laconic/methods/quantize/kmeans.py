"""k-means: not a grid but the best values for the weights of each row, by how much each weight counts.

Paper: S. Kim et al., "SqueezeLLM", ICML 2024, arXiv 2306.07629, equation (4): the values of every output channel
minimise Σ_j Φ_ij (w_ij − Q(w_ij))², Φ the diagonal of the Fisher information. Of few sequences every single element of
Φ is a poor estimate, so it is shrunk by half to its Kronecker-factored form, F_ii C_jj.

Beyond the paper, the values are fitted anew once every weight has its own, to the outputs of the layer
(`laconic.numerics.tables`): a few of them make up for much of what rounding the others to them did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Integer
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from laconic.calibrate import Fisher, GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.errors import must_be
from laconic.formats import Codebook
from laconic.methods.prune.moments import of_inputs, of_outputs
from laconic.methods.quantize.size import Quantizing, Solver
from laconic.numerics.grid import LARGEST_SCALE, Grid, Spacing, fit_grid
from laconic.numerics.kmeans import kmeans, nearest_of
from laconic.numerics.obs import damped
from laconic.numerics.psd import RELATIVE_FLOOR
from laconic.numerics.tables import best_values

Weights = Literal["shrunk", "fisher", "moments"]


@dataclass(frozen=True, kw_only=True)
class KMeans(Quantizing):
    """The nearest of 2^bits values, which are found by weighted k-means.

    group_size: what shares a table: `channel`, `tensor`, or so many columns of a row, which for few of them costs more
                than the codes.
    weights:    how much the squared error of each weight counts: `fisher` as it was measured, `moments` for F_ii C_jj,
                `shrunk` for half of each.
    refit:      fit the values to the outputs of the layer in the end.
    damping:    regularises C there, as a fraction of the mean of its diagonal.
    """

    name = "kmeans"
    paper = "Kim et al., SqueezeLLM, ICML 2024"
    needs = frozenset({Fisher, InputCovariance, GradCovariance})

    group_size: Annotated[int, Field(ge=1)] | Literal["channel", "tensor"] = "channel"
    weights: Weights = "shrunk"
    refit: bool = True
    damping: Annotated[float, Field(gt=0)] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.damping > 0:
            raise must_be(f"{self.name}.damping", "above 0", self.damping)

    @property
    def asks(self) -> frozenset[type[Statistic]]:
        if self.weights == "moments":
            return frozenset({InputCovariance, GradCovariance})
        return self.needs if self.refit or self.weights == "shrunk" else frozenset({Fisher})

    def empty(self, bits: int, shape: tuple[int, int], kept: int | None) -> Codebook:
        return Codebook(shape, bits, self.group_of(shape[1]), kept)

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        group, support = self.group_of(weight.shape[1]), known.support
        h = self.importance(known)
        h = h if support is None else h * support
        W = weight if support is None else weight * support
        numbers, weights = (_grouped(X, group) for X in (W, h))

        def solve(bits: int) -> Codebook:
            # A grid is one way to choose the values: what is found is no worse.
            grid = fit_grid(W, Spacing(bits, group), h, support)
            values = kmeans(numbers, weights, 2**bits, [_values_on(grid)]).half().float()
            codes = _as_matrix(nearest_of(numbers.float(), values), weight.shape, group)
            # A weight with a value to itself has nothing to gain.
            shared = group is None or 2**bits < group
            if self.refit and shared and known[InputCovariance].matrix.ndim == 2:
                values = self._refitted(W, codes, values, known).view(values.shape)
            tables = values.view(1 if group is None else len(weight), -1, 2**bits)
            return Codebook.of(codes, tables, group, weight.dtype, support)

        return solve

    def _refitted(
        self,
        W: Float[Tensor, "out in"],
        codes: Integer[Tensor, "out in"],
        values: Float[Tensor, "tables k"],
        known: LayerStats,
    ) -> Float[Tensor, "rows values"]:
        """The values that are best for these codes; all tables of a row lie side by side and are fitted together."""
        group, (m, n) = self.group_of(W.shape[1]), W.shape
        together = values.view(1 if group is None else m, -1)
        places = codes.long()
        if group is not None:
            places = places + torch.arange(n, device=W.device) // group * values.shape[1]
        if known.support is not None:
            places = places.masked_fill(~known.support, together.shape[1])
        F = of_outputs(known)[:, 0] if group is None else torch.ones(m, dtype=torch.float64, device=W.device)
        fitted = best_values(W, places, together, damped(known[InputCovariance].matrix, self.damping), F)
        return fitted.clamp(-LARGEST_SCALE, LARGEST_SCALE).float()

    def importance(self, known: LayerStats) -> Float[Tensor, "out in"]:
        """How much the squared error of each weight counts; never nothing, so that unseen weights count alike."""
        parts = []
        if self.weights != "fisher":
            parts.append(of_outputs(known) * of_inputs(known))
        if self.weights != "moments":
            Phi = known[Fisher].matrix
            floors = RELATIVE_FLOOR * Phi.mean(1, keepdim=True)
            parts.append(torch.where(floors > 0, Phi.clamp(min=floors), RELATIVE_FLOOR))
        return torch.stack([part / part.mean() for part in parts]).mean(0)


def _grouped(X: Float[Tensor, "out in"], group: int | None) -> Float[Tensor, "tables n"]:
    """The numbers of every table in a row of its own, the last of a row of X filled up with zeros."""
    if group is None:
        return X.reshape(1, -1)
    return pad(X, (0, -X.shape[1] % group)).reshape(-1, group)


def _as_matrix(codes: Tensor, shape: Sequence[int], group: int | None) -> Tensor:
    m, n = shape
    return codes.view(m, n) if group is None else codes.view(m, -1)[:, :n]


def _values_on(grid: Grid) -> Float[Tensor, "tables values"]:
    """s (c − z) of every code."""
    every = torch.arange(2**grid.bits, device=grid.scale.device)
    return (grid.scale[..., None] * (every - grid.zero[..., None])).flatten(0, 1)
