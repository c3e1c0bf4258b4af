"""KFAC-prune: the zeros that cost the model's predictions least, and the best values for what stays.

Papers: B. Hassibi, D. Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1992;
Y. LeCun, J. Denker, S. Solla, "Optimal Brain Damage", NeurIPS 1989; with the Kronecker-factored curvature F ⊗ C of
J. Martens, R. Grosse, arXiv 1503.05671, as in T. van der Ouderaa et al., "The LLM Surgeon", ICLR 2024, arXiv
2312.17244. What removing a weight adds to the predicted loss, ½ tr(F E C E^T) nats, is

    obd: ½ w² F_ii C_jj,    the others as they are;
    obs: ½ w² / ([F^{-1}]_ii [C^{-1}]_jj),    all others at their best.

Being nats, scores compare from matrix to matrix. Each row is then fitted anew on what it keeps, by least squares.
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
from laconic.numerics.psd import InputMoment, Moment, shrink
from laconic.numerics.refit import inverse, refit

Score = Literal["obd", "obs"]


@dataclass(frozen=True, kw_only=True)
class KfacPrune(Scored):
    """Scores in nats by both curvatures, then least squares on the support.

    score:     `obd` or `obs`.
    gradients: with the Fisher information of the outputs; without it F is the identity.
    refit:     fit what stays anew.
    shrink:    regularises F.
    damping:   regularises C, as a fraction of the mean of its diagonal.
    """

    name = "kfac-prune"
    paper = "Hassibi & Stork 1992; van der Ouderaa et al., ICLR 2024"
    needs = frozenset({Gram, OutputGram})

    score: Score = "obd"
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
        H = damped(known[Gram].matrix, self.damping)
        return self._scores(weight, known, _inverse(H))

    def solver(self, weight: Float[Tensor, "out in"], known: Known) -> Solver:
        H = damped(known[Gram].matrix, self.damping)
        H_inverse = _inverse(H)
        scores = marked(self._scores(weight, known, H_inverse), known.support)

        def solve(size: Size) -> Sparse:
            mask = self.keep(scores, size)
            # What one-hot rows of input keep is at its best as it is.
            if not self.refit or H.ndim == 1 or loses_nothing(weight, mask):
                return sparse(weight, mask, size)
            return sparse(refit(weight, mask, H, H_inverse).to(weight.dtype), mask, size)

        return solve

    def _scores(self, weight: Float[Tensor, "out in"], known: Known, H_inverse: InputMoment) -> Float[Tensor, "out in"]:
        F = shrink(known[OutputGram].matrix, self.shrink) if self.gradients else torch.ones(1, device=weight.device)
        if self.score == "obd":
            rows, columns = importance(F), of_inputs(known)
        else:
            rows, columns = 1 / importance(_inverse(F)), activity(known) / importance(H_inverse)
        return 0.5 * weight.double().square() * rows.double()[:, None] * columns


def _inverse(S: Moment) -> Moment:
    return inverse(S) if S.ndim == 2 else 1 / S
