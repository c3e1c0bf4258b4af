"""SparseGPT: column by column, each weight that goes is made up for by those to the right of it.

Paper: E. Frantar, D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023,
arXiv 2301.00774, algorithm 1. A weight's score is w² / [H^{-1}]_jj, where H = C + λ I of its column and those to the
right of it, which alone can make up for it. It is taken anew for each block of 128 columns (each group of M for a
pattern) once all columns to the left of it are done. The paper prunes every block by the same fraction; here a block
loses as many as have the lowest scores of the whole matrix, or row, at the start. So counts are exact, zeros of an
earlier step count, and inputs that are never active go first, wherever they lie.

The sweep lets a weight that goes be made up for by those to its right alone. What it keeps is then fitted once more,
with all other kept weights of the row: the least (w − z)^T H (w − z) on the support (`laconic.numerics.refit`; V. Boža,
TMLR 2024, arXiv 2401.02938). Without `refit` it ends where the paper does.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.errors import must_be
from laconic.formats import Sparse
from laconic.methods.prune.moments import activity, of_outputs
from laconic.methods.prune.scored import Scored, loses_nothing, sparse
from laconic.methods.prune.size import Size, Solver
from laconic.numerics.masks import keep_in_groups, largest, marked
from laconic.numerics.obs import BLOCK, Choice, Pruned, damped, inverse_factor, sweep
from laconic.numerics.psd import RELATIVE_FLOOR
from laconic.numerics.refit import refine


@dataclass(frozen=True, kw_only=True)
class SparseGpt(Scored):
    """Optimal brain surgery in one sweep over the columns.

    damping:   λ as a fraction of the mean of diag C.
    gradients: weigh the scores of the outputs by the Fisher information, so that rows compare.
    refit:     fit the weights that the sweep keeps again, all columns of a row together.
    """

    name = "sparsegpt"
    paper = "Frantar & Alistarh, ICML 2023; Boža, TMLR 2024"
    needs = frozenset({InputCovariance})

    damping: Annotated[float, Field(ge=0)] = 0.01
    gradients: bool = False
    refit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.damping >= 0:
            raise must_be(f"{self.name}.damping", "at least 0", self.damping)

    @property
    def asks(self) -> frozenset[type[Statistic]]:
        return self.needs | {GradCovariance} if self.gradients else self.needs

    def scores(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Float[Tensor, "out in"]:
        U = self._factor(known)
        # Matrices are compared by what each weight costs where all others may move, whatever the order of the columns.
        return self._scores(weight, known, U.square() if U.ndim == 1 else U.square().sum(0))

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        U = self._factor(known)
        spread = U.square() if U.ndim == 1 else U.diagonal().square()
        scores = marked(self._scores(weight, known, spread), known.support)

        def solve(size: Size) -> Sparse:
            mask = self.keep(scores, size)
            # Inputs of one-hot rows never occur together: there is nothing to the right that could make up for them.
            if U.ndim == 1 or loses_nothing(weight, mask):
                return sparse(weight, mask, size)
            step = size[1] if isinstance(size, tuple) else BLOCK
            pruned = sweep(weight, U, self._choice(known, mask, size), step)
            fitted = self._fitted(weight, known, pruned) if self.refit else pruned.W
            return sparse(fitted.to(weight.dtype), pruned.mask, size)

        return solve

    def _fitted(self, weight: Float[Tensor, "out in"], known: LayerStats, pruned: Pruned) -> Float[Tensor, "out in"]:
        """The kept weights by least squares over the whole row."""
        return refine(weight, pruned.mask, damped(known[InputCovariance].matrix, self.damping), pruned.W)

    def _choice(self, known: LayerStats, first: Bool[Tensor, "out in"], size: Size) -> Choice:
        """As many of each block, or of each row of it, as `first` keeps there."""
        rows, columns = self._weights(known)

        def keep(scores: Float[Tensor, "out columns"], start: int) -> Bool[Tensor, "out columns"]:
            here = slice(start, start + scores.shape[1])
            weighed = scores * rows * columns[here]
            now = marked(weighed, None if known.support is None else known.support[:, here])
            if isinstance(size, tuple):
                return keep_in_groups(now, size)
            if self.within == "row":
                return largest(now, first[:, here].sum(1))
            return largest(now.reshape(1, -1), first[:, here].sum()[None]).view(now.shape)

        return keep

    def _factor(self, known: LayerStats) -> Float[Tensor, "in in"] | Float[Tensor, " in"]:
        H = damped(known[InputCovariance].matrix, self.damping)
        return inverse_factor(H) if H.ndim == 2 else H.clamp(min=RELATIVE_FLOOR * H.mean().item()).rsqrt()

    def _scores(
        self, weight: Float[Tensor, "out in"], known: LayerStats, spread: Float[Tensor, " in"]
    ) -> Float[Tensor, "out in"]:
        """w² / [H^{-1}]_jj, for `spread` the diagonal, weighed."""
        rows, columns = self._weights(known)
        return weight.double().square() / spread * rows * columns

    def _weights(self, known: LayerStats) -> tuple[Float[Tensor, "out 1"], Float[Tensor, " in"]]:
        """What the scores of the rows, and of the columns, are multiplied by."""
        columns = activity(known)
        return of_outputs(known) if self.gradients else columns.new_ones(1, 1), columns
