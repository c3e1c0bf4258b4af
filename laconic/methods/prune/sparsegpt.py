"""SparseGPT: prune columns from left to right; those to the right compensate for each removed weight.

Removing w_q costs ½ w_q² / [H^{-1}]_qq and moves the others by −(w_q / [H^{-1}]_qq) H^{-1}_{:,q} (E. Frantar, D.
Alistarh, ICML 2023, arXiv 2301.00774, algorithm 1).

The paper prunes every block of 128 columns by the same fraction. Here a block loses as many weights as it has among the
lowest scores of the whole matrix, or row, at the start. So counts are exact, zeros of an earlier step count, and inputs
that are never active are pruned first, wherever they are.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.formats import Sparse
from laconic.methods.prune.base import Size, Solver, UnstructuredPruning, removes_nothing, to_sparse
from laconic.numerics.masks import exclude_pruned, keep_in_groups, keep_largest
from laconic.numerics.moments import RELATIVE_FLOOR, active_inputs, floored_diagonal
from laconic.numerics.obs import BLOCK, MaskRule, PrunedWeight, damp, inverse_cholesky, prune_columns
from laconic.numerics.refit import refine


@dataclass(frozen=True, kw_only=True)
class SparseGpt(UnstructuredPruning):
    """Optimal brain surgeon in one sweep over the columns, then least squares for the kept weights.

    The score of a weight is w² / [H^{-1}]_jj. H = C + λ I is restricted to its column and the columns to the right, the
    only ones that can compensate. Scores are computed again for each block of 128 columns (each group of M for a
    pattern N:M), after all columns to the left are done. The sweep compensates only to the right; with `refit` the kept
    weights z of each row are then fitted once more, to minimise (w − z)^T H (w − z).

    Args:
        damping: λ as a fraction of the mean of diag C.
        gradients: weight the scores of the rows by the Fisher information of their outputs, to compare rows.
        refit: fit the kept weights of each row again after the sweep; without it the method is that of the paper.

    Reference:
        E. Frantar, D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023,
        arXiv 2301.00774, algorithm 1; refit: V. Boža, TMLR 2024, arXiv 2401.02938.

    Example:
        The inputs are equal most of the time, so one weight can do the work of both.

        >>> import torch
        >>> C = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> stats = LayerStats([InputCovariance.from_moment(C, count=10)])
        >>> SparseGpt(sparsity=0.5).compress(torch.tensor([[1.0, 2.0]]), stats).dense().detach().round(decimals=1)
        tensor([[0.0000, 2.9000]])
    """

    name = "sparsegpt"
    paper = "Frantar & Alistarh, ICML 2023; Boža, TMLR 2024"
    needs = frozenset({InputCovariance})

    damping: Annotated[float, Field(ge=0)] = 0.01
    gradients: bool = False
    refit: bool = True

    @property
    def required_statistics(self) -> frozenset[type[Statistic]]:
        return self.needs | {GradCovariance} if self.gradients else self.needs

    def scores(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Float[Tensor, "out in"]:
        U = self._factor(stats)
        # To compare matrices, all other weights compensate, so the score does not depend on the order of the columns.
        return self._scores(weight, stats, U.square() if U.ndim == 1 else U.square().sum(0))

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        U = self._factor(stats)
        spread = U.square() if U.ndim == 1 else U.diagonal().square()
        scores = exclude_pruned(self._scores(weight, stats, spread), stats.support)

        def solve(size: Size) -> Sparse:
            mask = self.mask_for(scores, size)
            # One-hot inputs never occur together, so no column to the right can compensate.
            if U.ndim == 1 or removes_nothing(weight, mask):
                return to_sparse(weight, mask, size)
            step = size[1] if isinstance(size, tuple) else BLOCK
            pruned = prune_columns(weight, U, self._mask_rule(stats, mask, size), step)
            fitted = self._refit_kept(weight, stats, pruned) if self.refit else pruned.W
            return to_sparse(fitted.to(weight.dtype), pruned.mask, size)

        return solve

    def _refit_kept(
        self, weight: Float[Tensor, "out in"], stats: LayerStats, pruned: PrunedWeight
    ) -> Float[Tensor, "out in"]:
        """The kept weights by least squares over the whole row."""
        return refine(weight, pruned.mask, damp(stats[InputCovariance].matrix, self.damping), pruned.W)

    def _mask_rule(self, stats: LayerStats, first: Bool[Tensor, "out in"], size: Size) -> MaskRule:
        """A rule that keeps as many weights of each block, or of each row of it, as the mask `first` does."""
        rows, columns = self._weights(stats)

        def keep(scores: Float[Tensor, "out columns"], start: int) -> Bool[Tensor, "out columns"]:
            block = slice(start, start + scores.shape[1])
            raw = scores * rows * columns[block]
            weighted = exclude_pruned(raw, None if stats.support is None else stats.support[:, block])
            if isinstance(size, tuple):
                return keep_in_groups(weighted, size)
            if self.within == "row":
                return keep_largest(weighted, first[:, block].sum(1))
            return keep_largest(weighted.reshape(1, -1), first[:, block].sum()[None]).view(weighted.shape)

        return keep

    def _factor(self, stats: LayerStats) -> Float[Tensor, "in in"] | Float[Tensor, " in"]:
        H = damp(stats[InputCovariance].matrix, self.damping)
        return inverse_cholesky(H) if H.ndim == 2 else H.clamp(min=RELATIVE_FLOOR * H.mean().item()).rsqrt()

    def _scores(
        self, weight: Float[Tensor, "out in"], stats: LayerStats, spread: Float[Tensor, " in"]
    ) -> Float[Tensor, "out in"]:
        """w² / [H^{-1}]_jj times the factors of row and column; `spread` is the diagonal of H^{-1}."""
        rows, columns = self._weights(stats)
        return weight.double().square() / spread * rows * columns

    def _weights(self, stats: LayerStats) -> tuple[Float[Tensor, "out 1"], Float[Tensor, " in"]]:
        """The factors of the scores of rows and of columns."""
        columns = active_inputs(stats[InputCovariance].matrix)
        if not self.gradients:
            return columns.new_ones(1, 1), columns
        return floored_diagonal(stats[GradCovariance].matrix)[:, None], columns
