"""k-means quantization: each row has 2^b values of its own, min Σ_j Φ_ij (w_ij − Q(w_ij))², instead of an even grid.

S. Kim et al., "SqueezeLLM", ICML 2024, arXiv 2306.07629, equation 4.
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
from laconic.formats import Codebook
from laconic.methods.quantize.base import QuantizationMethod, Solver
from laconic.numerics.grid import Grid, GridSpec, fit_grid
from laconic.numerics.grid_search import LARGEST_SCALE
from laconic.numerics.kmeans import assign_codes, kmeans, refit_codebook
from laconic.numerics.moments import RELATIVE_FLOOR, floored_diagonal
from laconic.numerics.obs import damp

Weights = Literal["shrunk", "fisher", "moments"]


@dataclass(frozen=True, kw_only=True)
class KMeans(QuantizationMethod):
    """Each weight becomes the nearest of 2^bits values that are found by weighted k-means.

    The values of every output channel minimise Σ_j Φ_ij (w_ij − Q(w_ij))², Φ the diagonal of the Fisher information.
    From few sequences, a single element of Φ is a poor estimate, so by default it is averaged with its
    Kronecker-factored form F_ii C_jj. Beyond the paper, the values are then refitted to the outputs of the layer with
    fixed codes (`laconic.numerics.kmeans`).

    Args:
        group_size: weights that share a table of values: `channel` (a row), `tensor`, or a number of columns of a row;
            small groups have tables that cost more than the codes.
        weights: the importance of each weight's squared error: `fisher` (Φ as measured), `moments` (F_ii C_jj) or
            `shrunk` (the mean of the two, each relative to its mean).
        refit: refit the values to the outputs of the layer at the end.
        damping: added to the diagonal of C in the refit, as a fraction of its mean.

    Reference:
        S. Kim et al., "SqueezeLLM", ICML 2024, arXiv 2306.07629, equation 4.

    Example:
        >>> weight = torch.tensor([[1.0, 7.0, 1.0, 7.0, 20.0, 20.0, 21.0, 21.0]])
        >>> stats = LayerStats([Fisher.from_total(torch.ones(1, 8), count=1)])
        >>> method = KMeans(bits=2, weights="fisher", refit=False)
        >>> method.compress(weight, stats).dense().tolist()
        [[1.0, 7.0, 1.0, 7.0, 20.0, 20.0, 21.0, 21.0]]
    """

    name = "kmeans"
    paper = "Kim et al., SqueezeLLM, ICML 2024"
    needs = frozenset({Fisher, InputCovariance, GradCovariance})

    group_size: Annotated[int, Field(ge=1)] | Literal["channel", "tensor"] = "channel"
    weights: Weights = "shrunk"
    refit: bool = True
    damping: Annotated[float, Field(gt=0)] = 0.01

    @property
    def required_statistics(self) -> frozenset[type[Statistic]]:
        if self.weights == "moments":
            return frozenset({InputCovariance, GradCovariance})
        return self.needs if self.refit or self.weights == "shrunk" else frozenset({Fisher})

    def empty_codes(self, bits: int, shape: tuple[int, int], kept: int | None) -> Codebook:
        return Codebook(shape, bits, self.group_columns(shape[1]), kept)

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        group, support = self.group_columns(weight.shape[1]), stats.support
        h = self.importance(stats)
        h = h if support is None else h * support
        W = weight if support is None else weight * support
        rows_of_tables, weights = (_group_rows(X, group) for X in (W, h))

        def solve(bits: int) -> Codebook:
            # The values of a grid are one of the starts, so the result is no worse.
            grid = fit_grid(W, GridSpec(bits, group), h, support)
            values = kmeans(rows_of_tables, weights, 2**bits, [_grid_values(grid)]).half().float()
            codes = _as_matrix(assign_codes(rows_of_tables.float(), values), weight.shape, group)
            # A weight that has a value of its own cannot be improved.
            shared = group is None or 2**bits < group
            if self.refit and shared and stats[InputCovariance].matrix.ndim == 2:
                values = self._refit_values(W, codes, values, stats).view(values.shape)
            tables = values.view(1 if group is None else len(weight), -1, 2**bits)
            return Codebook.from_codes(codes, tables, group, weight.dtype, support)

        return solve

    def _refit_values(
        self,
        W: Float[Tensor, "out in"],
        codes: Integer[Tensor, "out in"],
        values: Float[Tensor, "tables k"],
        stats: LayerStats,
    ) -> Float[Tensor, "rows values"]:
        """The values that fit these codes best; the tables of one row are fitted together."""
        group, (m, n) = self.group_columns(W.shape[1]), W.shape
        tables = values.view(1 if group is None else m, -1)
        places = codes.long()
        if group is not None:
            places = places + torch.arange(n, device=W.device) // group * values.shape[1]
        if stats.support is not None:
            places = places.masked_fill(~stats.support, tables.shape[1])
        C = stats[InputCovariance].matrix
        F = floored_diagonal(stats[GradCovariance].matrix) if group is None else C.new_ones(m)
        fitted = refit_codebook(W, places, tables, damp(C, self.damping), F)
        return fitted.clamp(-LARGEST_SCALE, LARGEST_SCALE).float()

    def importance(self, stats: LayerStats) -> Float[Tensor, "out in"]:
        """The importance of each weight's squared error, (out, in), positive and with mean 1."""
        parts = []
        if self.weights != "fisher":
            parts.append(
                torch.outer(*(floored_diagonal(stats[kind].matrix) for kind in (GradCovariance, InputCovariance)))
            )
        if self.weights != "moments":
            Phi = stats[Fisher].matrix
            floors = RELATIVE_FLOOR * Phi.mean(1, keepdim=True)
            parts.append(torch.where(floors > 0, Phi.clamp(min=floors), RELATIVE_FLOOR))
        return torch.stack([part / part.mean() for part in parts]).mean(0)


def _group_rows(X: Float[Tensor, "out in"], group: int | None) -> Float[Tensor, "tables n"]:
    """One row for the weights of each table, padded with zeros where a row of X does not fill its last table."""
    if group is None:
        return X.reshape(1, -1)
    return pad(X, (0, -X.shape[1] % group)).reshape(-1, group)


def _as_matrix(codes: Tensor, shape: Sequence[int], group: int | None) -> Tensor:
    m, n = shape
    return codes.view(m, n) if group is None else codes.view(m, -1)[:, :n]


def _grid_values(grid: Grid) -> Float[Tensor, "tables values"]:
    """scale · (code − zero point) for every code of each grid."""
    codes = torch.arange(2**grid.bits, device=grid.scale.device)
    return (grid.scale[..., None] * (codes - grid.zero[..., None])).flatten(0, 1)
