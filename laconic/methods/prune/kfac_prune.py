"""KFAC-prune: the zeros that cost the model's predictions least, and the best values for what stays.

Papers: B. Hassibi, D. Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1992;
Y. LeCun, J. Denker, S. Solla, "Optimal Brain Damage", NeurIPS 1989; with the Kronecker-factored curvature F ⊗ C of
J. Martens, R. Grosse, arXiv 1503.05671, as in T. van der Ouderaa et al., "The LLM Surgeon", ICLR 2024, arXiv
2312.17244. What removing a weight adds to the predicted loss, ½ tr(F E C E^T) nats, is

    obd:     ½ w² F_ii C_jj,                       the others as they are;
    obs:     ½ w² / ([F^{-1}]_ii [C^{-1}]_jj),     all others at their best;
    partial: ½ w² v_ij,                            those of the others at their best that stay.

obd forgets that others make up for a weight that goes, and obs that most of them go as well. `partial` lies between the
two, by the sparsity asked for (`laconic.numerics.partial`): obs where nothing goes, and obd where nothing stays. Being
nats, scores compare from matrix to matrix.

What stays is then fitted anew: the least ½ tr(F E C E^T) that the mask allows, in which F couples the rows
(`laconic.numerics.coupled`), or the least squares of every row for itself. Of a word embedding C is diagonal, as no two
of its inputs occur together: the rows of each column make up for each other apart from the other columns, which is the
same least squares with F in the place of C. Where neither matrix couples anything, nothing is there to be fitted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.errors import must_be
from laconic.formats import Sparse
from laconic.methods.prune.moments import activity, importance, of_inputs
from laconic.methods.prune.scored import Scored, loses_nothing, sparse
from laconic.methods.prune.size import Size, Solver
from laconic.numerics.coupled import refit_coupled
from laconic.numerics.masks import marked
from laconic.numerics.obs import damped
from laconic.numerics.partial import Correlations, correlations, unexplained
from laconic.numerics.psd import InputMoment, Moment, OutputMoment, shrink
from laconic.numerics.refit import inverse, refit

Score = Literal["partial", "obd", "obs"]
Fit = Callable[[Float[Tensor, "out in"], Bool[Tensor, "out in"]], Float[Tensor, "out in"]]
"""Values for what a mask keeps of a matrix."""

USUAL = 0.5
"""The sparsity that `partial` is taken at where none is said."""


@dataclass(frozen=True, kw_only=True)
class KfacPrune(Scored):
    """Scores in nats by both curvatures, then least squares on the support.

    score:     `partial`, `obd` or `obs`.
    gradients: with the Fisher information of the outputs; without it F is the identity.
    refit:     fit what stays anew.
    coupled:   let rows make up for each other; otherwise each is fitted for itself.
    shrink:    regularises F.
    damping:   regularises C, as a fraction of the mean of its diagonal.
    """

    name = "kfac-prune"
    paper = "Hassibi & Stork 1992; van der Ouderaa et al., ICLR 2024"
    needs = frozenset({InputCovariance, GradCovariance})

    coarseness: ClassVar[int] = 2

    score: Score = "partial"
    gradients: bool = True
    refit: bool = True
    coupled: bool = True
    shrink: Annotated[float, Field(gt=0, le=1)] = 0.1
    damping: Annotated[float, Field(gt=0)] = 0.01
    cap: Annotated[float, Field(gt=0, le=1)] = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrink <= 1:
            raise must_be(f"{self.name}.shrink", "in (0, 1]", self.shrink)
        if not self.damping > 0:
            raise must_be(f"{self.name}.damping", "above 0", self.damping)

    @property
    def asks(self) -> frozenset[type[Statistic]]:
        return self.needs if self.gradients else frozenset({InputCovariance})

    def scores(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Float[Tensor, "out in"]:
        return self._scores(weight, known, USUAL if self.size is None else self.size)

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        fit = self._fit(weight, known) if self.refit else None

        def solve(size: Size) -> Sparse:
            mask = self.keep(marked(self._scores(weight, known, size), known.support), size)
            if fit is None or loses_nothing(weight, mask):
                return sparse(weight, mask, size)
            return sparse(fit(weight, mask).to(weight.dtype), mask, size)

        return solve

    def _fit(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Fit | None:
        """How what stays is fitted. None where it is at its best: no input, and no output, tells of another."""
        F, H = self._moments(weight, known)
        coupled = self.coupled and F.ndim == 2
        if H.ndim == 1:
            return partial(_refit_columns, F=F, F_inverse=inverse(F)) if coupled else None
        return partial(refit_coupled, F=F, H=H) if coupled else partial(refit, H=H, H_inverse=inverse(H))

    def _scores(self, weight: Float[Tensor, "out in"], known: LayerStats, size: Size) -> Float[Tensor, "out in"]:
        F, H = self._moments(weight, known)
        if self.score == "obd":
            v = importance(F)[:, None] * of_inputs(known)
        elif self.score == "obs":
            v = activity(known) / (importance(_inverse(F))[:, None] * importance(_inverse(H)))
        else:
            missing = 1 - size[0] / size[1] if isinstance(size, tuple) else size
            outputs, inputs = self._correlations(known, F, H)
            v = activity(known) * unexplained(outputs, inputs, missing)
        return 0.5 * weight.double().square() * v

    def _correlations(self, known: LayerStats, F: OutputMoment, H: InputMoment) -> tuple[Correlations, Correlations]:
        """Of the outputs and the inputs. Rows that are not fitted together do not make up for each other."""
        if F.ndim == 2 and not self.coupled:
            F = F.diagonal()
        named = f"shrink {self.shrink}, gradients {self.gradients}, coupled {self.coupled}"
        outputs = known.once(f"correlations of outputs, {named}", lambda: correlations(F))
        inputs = known.once(f"correlations of inputs, damping {self.damping}", lambda: correlations(H))
        return Correlations(*outputs), Correlations(*inputs)

    def _moments(self, weight: Float[Tensor, "out in"], known: LayerStats) -> tuple[OutputMoment, InputMoment]:
        """F and C, made positive definite."""
        H = damped(known[InputCovariance].matrix, self.damping)
        if not self.gradients:
            return torch.ones(len(weight), dtype=H.dtype, device=H.device), H
        return shrink(known[GradCovariance].matrix, self.shrink), H


def _refit_columns(
    W: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    F: Float[Tensor, "out out"],
    F_inverse: Float[Tensor, "out out"],
) -> Float[Tensor, "out in"]:
    """The least (w − z)^T F (w − z) of every column for itself."""
    return refit(W.T, mask.T, F, F_inverse).T.contiguous()


def _inverse(S: Moment) -> Moment:
    return inverse(S) if S.ndim == 2 else 1 / S
