"""KFAC-prune: the zeros that change the model's predictions least, and the best values for the weights that stay.

The scores estimate how much removing one weight adds to the predicted loss ½ tr(F E C E^T), in nats:

    obd:     ½ w² F_ii C_jj,                       the other weights unchanged;
    obs:     ½ w² / ([F^{-1}]_ii [C^{-1}]_jj),     all other weights refitted;
    partial: ½ w² v_ij,                            only the other weights that stay refitted.

obd ignores that other weights compensate for a removed one, and obs that most of them are removed as well. `partial`
interpolates between the two by the sparsity (`laconic.numerics.obs`): it is obs at sparsity 0 and obd at sparsity 1.
Scores in nats can be compared between matrices.

The kept weights are then fitted again, to the least ½ tr(F E C E^T) under the mask, in which F couples the rows
(`laconic.numerics.coupled_refit`), or by least squares row by row (`laconic.numerics.refit`). For a word embedding C is
diagonal: the rows of each column compensate for each other, independently of other columns, which is least squares with
F in the place of C. Where both matrices are diagonal nothing can be fitted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.formats import Sparse
from laconic.methods.prune.base import Size, Solver, UnstructuredPruning, removes_nothing, to_sparse
from laconic.numerics.coupled_refit import CoupledLoss
from laconic.numerics.masks import exclude_pruned
from laconic.numerics.moments import InputMoment, Moment, OutputMoment, active_inputs, floored_diagonal, shrink
from laconic.numerics.obs import Correlations, correlations, damp, residual_curvature
from laconic.numerics.refit import inverse, refit

Score = Literal["partial", "obd", "obs"]
Fit = Callable[[Float[Tensor, "out in"], Bool[Tensor, "out in"]], Float[Tensor, "out in"]]
"""Fits the weights that a mask keeps."""

DEFAULT_SPARSITY = 0.5
"""The sparsity at which `partial` scores are computed where no size is set."""


@dataclass(frozen=True, kw_only=True)
class KfacPrune(UnstructuredPruning):
    """Prunes by the Kronecker-factored curvature, then fits the kept weights by least squares.

    Args:
        score: estimate of what a weight's removal costs: `obd` with the others unchanged, `obs` with all others
            adjusted, `partial` with those adjusted that stay.
        gradients: use the Fisher information F of the outputs; without it F is the identity.
        refit: fit the kept weights again.
        coupled: let rows compensate for each other; otherwise each row is fitted on its own.
        shrink: F is shrunk towards the identity times its mean diagonal by this fraction.
        damping: added to the diagonal of C, as a fraction of its mean.

    Reference:
        B. Hassibi, D. Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1992;
        Y. LeCun, J. Denker, S. Solla, "Optimal Brain Damage", NeurIPS 1989; T. van der Ouderaa et al., "The LLM
        Surgeon", ICLR 2024, arXiv 2312.17244.

    Example:
        >>> F = GradCovariance.from_total(torch.eye(1), count=1)
        >>> stats = LayerStats([InputCovariance.from_moment(torch.tensor([[1.0, 0.9], [0.9, 1.0]]), count=10), F])
        >>> KfacPrune(sparsity=0.5).compress(torch.tensor([[1.0, 2.0]]), stats).dense().detach().round(decimals=1)
        tensor([[0.0000, 2.9000]])
    """

    name = "kfac-prune"
    paper = "Hassibi & Stork 1992; van der Ouderaa et al., ICLR 2024"
    needs = frozenset({InputCovariance, GradCovariance})

    stride: ClassVar[int] = 2

    score: Score = "partial"
    gradients: bool = True
    refit: bool = True
    coupled: bool = True
    shrink: Annotated[float, Field(gt=0, le=1)] = 0.1
    damping: Annotated[float, Field(gt=0)] = 0.01
    cap: Annotated[float, Field(gt=0, le=1)] = 0.9

    @property
    def required_statistics(self) -> frozenset[type[Statistic]]:
        return self.needs if self.gradients else frozenset({InputCovariance})

    def scores(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Float[Tensor, "out in"]:
        return self._scores(weight, stats, DEFAULT_SPARSITY if self.size is None else self.size)

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        # Made after the first scores, so that the moments are not in memory twice.
        fit_of = cache(lambda: self._fit(weight, stats) if self.refit else None)

        def solve(size: Size) -> Sparse:
            mask = self.mask_for(exclude_pruned(self._scores(weight, stats, size), stats.support), size)
            if removes_nothing(weight, mask) or (fit := fit_of()) is None:
                return to_sparse(weight, mask, size)
            return to_sparse(fit(weight, mask).to(weight.dtype), mask, size)

        return solve

    def _fit(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Fit | None:
        """The function that fits the kept weights; None if neither inputs nor outputs are correlated."""
        F, H = self._output_moment(weight, stats), self._input_moment(stats)
        coupled = self.coupled and F.ndim == 2
        if H.ndim == 1:
            return partial(_refit_columns, F=F, F_inverse=inverse(F)) if coupled else None
        return CoupledLoss.from_moments(F, H).refit if coupled else partial(refit, H=H, H_inverse=inverse(H))

    def _scores(self, weight: Float[Tensor, "out in"], stats: LayerStats, size: Size) -> Float[Tensor, "out in"]:
        C = stats[InputCovariance].matrix
        active = active_inputs(C if C.ndim == 1 else C.diagonal())
        if self.score == "obd":
            v = floored_diagonal(self._output_moment(weight, stats))[:, None] * floored_diagonal(C)
        elif self.score == "obs":
            F, H = self._output_moment(weight, stats), self._input_moment(stats)
            v = active / (floored_diagonal(_inverse(F))[:, None] * floored_diagonal(_inverse(H)))
        else:
            del C
            missing = 1 - size[0] / size[1] if isinstance(size, tuple) else size
            v = active * residual_curvature(*self._correlations(weight, stats), missing)
        return 0.5 * weight.double().square() * v

    def _correlations(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> tuple[Correlations, Correlations]:
        """Correlations of the outputs and of the inputs. Rows that are not fitted together do not compensate for each
        other.
        """

        def of_outputs() -> Correlations:
            # F has no name here, because its memory is needed for the decomposition.
            return correlations(self._coupled_moment(weight, stats))

        named = f"shrink {self.shrink}, gradients {self.gradients}, coupled {self.coupled}"
        outputs = stats.get_or_compute(f"correlations of outputs, {named}", of_outputs)
        inputs = stats.get_or_compute(
            f"correlations of inputs, damping {self.damping}", lambda: correlations(self._input_moment(stats))
        )
        return Correlations(*outputs), Correlations(*inputs)

    def _output_moment(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> OutputMoment:
        """F, made positive definite."""
        if not self.gradients:
            return torch.ones(len(weight), dtype=torch.float64, device=weight.device)
        return shrink(stats[GradCovariance].matrix, self.shrink)

    def _coupled_moment(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> OutputMoment:
        """F, made positive definite, or only its diagonal if rows do not compensate for each other."""
        F = self._output_moment(weight, stats)
        return F.diagonal() if F.ndim == 2 and not self.coupled else F

    def _input_moment(self, stats: LayerStats) -> InputMoment:
        """C, made positive definite."""
        return damp(stats[InputCovariance].matrix, self.damping)


def _refit_columns(
    W: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    F: Float[Tensor, "out out"],
    F_inverse: Float[Tensor, "out out"],
) -> Float[Tensor, "out in"]:
    """The least (w − z)^T F (w − z) for each column on its own."""
    return refit(W.T, mask.T, F, F_inverse).T.contiguous()


def _inverse(S: Moment) -> Moment:
    return inverse(S) if S.ndim == 2 else 1 / S
