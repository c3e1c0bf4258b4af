"""KFAC-prune: the zeros that cost the model's predictions least, and the best values for what stays.

Papers: B. Hassibi, D. Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1992;
Y. LeCun, J. Denker, S. Solla, "Optimal Brain Damage", NeurIPS 1989; with the Kronecker-factored curvature F ⊗ C of
J. Martens, R. Grosse, arXiv 1503.05671, as in T. van der Ouderaa et al., "The LLM Surgeon", ICLR 2024, arXiv
2312.17244. What removing a weight adds to the predicted loss, ½ tr(F E C E^T) nats, is

    obd:     ½ w² F_ii C_jj,                         the others as they are;
    obs:     ½ w² / ([F^{-1}]_ii [C^{-1}]_jj),       all others at their best;
    partial: ½ w² F_ii v_j,                          those of the row at their best that stay.

Being nats, scores compare from matrix to matrix. Each row is then fitted anew on what it keeps, by least squares. So
weights of other rows make up for nothing, which obs counts on, nor do those of the row that go as well: v_j is what is
left of input j once those that stay speak for it (`laconic.numerics.partial`), C_jj where all go and 1 / [C^{-1}]_jj
where none does.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import Gram, Known, OutputGram, Statistic
from laconic.errors import must_be
from laconic.formats import Sparse
from laconic.methods.prune.moments import activity, importance, of_inputs
from laconic.methods.prune.scored import Scored, loses_nothing, sparse
from laconic.methods.prune.size import Size, Solver
from laconic.numerics.masks import marked
from laconic.numerics.obs import damped
from laconic.numerics.partial import unexplained
from laconic.numerics.psd import Moment, shrink
from laconic.numerics.refit import inverse, refit

Score = Literal["partial", "obd", "obs"]

USUAL = 0.5
"""The sparsity that `partial` is taken at where none is said."""


@dataclass(frozen=True, kw_only=True)
class KfacPrune(Scored):
    """Scores in nats by both curvatures, then least squares on the support.

    score:     `partial`, `obd` or `obs`.
    gradients: with the Fisher information of the outputs; without it F is the identity.
    refit:     fit what stays anew.
    shrink:    regularises F.
    damping:   regularises C, as a fraction of the mean of its diagonal.
    """

    name = "kfac-prune"
    paper = "Hassibi & Stork 1992; van der Ouderaa et al., ICLR 2024"
    needs = frozenset({Gram, OutputGram})

    score: Score = "partial"
    gradients: bool = True
    refit: bool = True
    shrink: Annotated[float, Field(gt=0, le=1)] = 0.1
    damping: Annotated[float, Field(gt=0)] = 0.01
    cap: Annotated[float, Field(gt=0, le=1)] = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in get_args(Score):
            raise must_be(f"{self.name}.score", f"one of {', '.join(get_args(Score))}", self.score)
        if not 0 < self.shrink <= 1:
            raise must_be(f"{self.name}.shrink", "in (0, 1]", self.shrink)
        if not self.damping > 0:
            raise must_be(f"{self.name}.damping", "above 0", self.damping)

    @property
    def asks(self) -> frozenset[type[Statistic]]:
        return self.needs if self.gradients else frozenset({Gram})

    def scores(self, weight: Float[Tensor, "out in"], known: Known) -> Float[Tensor, "out in"]:
        return self._scores(weight, known, USUAL if self.size is None else self.size)

    def solver(self, weight: Float[Tensor, "out in"], known: Known) -> Solver:
        H = damped(known[Gram].matrix, self.damping)
        H_inverse = _inverse(H)

        def solve(size: Size) -> Sparse:
            mask = self.keep(marked(self._scores(weight, known, size), known.support), size)
            # What one-hot rows of input keep is at its best as it is.
            if not self.refit or H.ndim == 1 or loses_nothing(weight, mask):
                return sparse(weight, mask, size)
            return sparse(refit(weight, mask, H, H_inverse).to(weight.dtype), mask, size)

        return solve

    def _scores(self, weight: Float[Tensor, "out in"], known: Known, size: Size) -> Float[Tensor, "out in"]:
        F = shrink(known[OutputGram].matrix, self.shrink) if self.gradients else torch.ones(1, device=weight.device)
        rows = 1 / importance(_inverse(F)) if self.score == "obs" else importance(F)
        return 0.5 * weight.double().square() * rows.double()[:, None] * self._columns(known, size)

    def _columns(self, known: Known, size: Size) -> Float[Tensor, " in"]:
        """How much each input counts; `partial` depends on how many of the others go."""
        if self.score == "obd":
            return of_inputs(known)
        missing = 0.0 if self.score == "obs" else 1 - size[0] / size[1] if isinstance(size, tuple) else size

        def compute() -> tuple[Tensor]:
            return (unexplained(damped(known[Gram].matrix, self.damping), missing),)

        (left,) = known.once(
            f"inputs that others leave unexplained, {missing} missing, damping {self.damping}", compute
        )
        return activity(known) * left


def _inverse(S: Moment) -> Moment:
    return inverse(S) if S.ndim == 2 else 1 / S
