"""GPTQ: round column by column; later columns compensate for each error by −(w_q − ŵ_q) / U_qq · U_q:, H^{-1} = U^T U.

E. Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323. `FeedbackQuantization` is the base class that GPTQ shares with
YAQA: it may prune the matrix first.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import InputCovariance, LayerStats
from laconic.errors import UserError
from laconic.formats import PackedCodes
from laconic.methods.prune.base import check_pattern, parse_pattern, pattern_error
from laconic.methods.prune.kfac_prune import KfacPrune
from laconic.methods.quantize.base import Solver
from laconic.methods.quantize.blocks import BlockQuantization
from laconic.numerics.gptq import ColumnOrder, gptq
from laconic.numerics.masks import zero_count
from laconic.numerics.quantizer import nearest

PrunedStart = tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"] | None]
"""A matrix to round, and the mask of its kept weights; None if all are kept."""


@dataclass(frozen=True, kw_only=True)
class FeedbackQuantization(BlockQuantization):
    """A method that compensates for rounding errors as it rounds, and may prune first.

    With `sparsity` or `pattern` the matrix W is pruned by `kfac-prune` on the same statistics before it is rounded. The
    pruned matrix Z minimises the loss under its mask, so the gradient is zero there: for any Ŵ with the same zeros, the
    loss of W − Ŵ is that of W − Z plus that of Z − Ŵ. Rounding Z is therefore the same as pruning and rounding W
    together. `sparsity` does not set the size of the method; `bits` does.

    Args:
        sparsity: fraction of zeros in the result, those of an earlier step included.
        pattern: `N:M`, keep N weights of every M consecutive inputs, in place of a sparsity.
        damping: added to the diagonal of C, as a fraction of its mean.

    Raises:
        UserError: both sparsity and pattern are given, or the pattern is not N:M with N < M.
    """

    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    pattern: str | None = None
    damping: Annotated[float, Field(gt=0)] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern is not None and self.sparsity is not None:
            raise UserError(f"{self.name} takes either sparsity or pattern; got both.")
        if self.pattern is not None:
            parse_pattern(self.name, self.pattern)

    @property
    @abstractmethod
    def pruner(self) -> KfacPrune:
        """The method that prunes the matrix before it is rounded."""

    def shape_error(self, shape: tuple[int, int], matrix: str) -> UserError | None:
        if self.pattern is None:
            return super().shape_error(shape, matrix)
        return pattern_error(self.name, parse_pattern(self.name, self.pattern), shape[1], matrix)

    def prune_first(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> PrunedStart:
        """The matrix to round, pruned where `sparsity` or `pattern` is set, and its mask.

        Raises:
            UserError: the pattern does not divide the width.
        """
        if self.sparsity is None and self.pattern is None:
            return weight, stats.support
        if self.pattern is not None:
            check_pattern(self.name, parse_pattern(self.name, self.pattern), weight.shape[1])
        pruned = self.pruner.compress(weight, stats)
        return pruned.dense(), pruned.support

    def column_order(self, stats: LayerStats, by_activity: bool = True, *, exact: bool = False) -> ColumnOrder | None:
        """The order of the columns for the damped moment of the inputs; None for the one-hot inputs of an embedding.

        Args:
            stats: the statistics of the layer.
            by_activity: whether to order by the diagonal of the moment.
            exact: whether the factor of the moment is to be left in the dtype in which it was computed.
        """
        C = stats[InputCovariance]
        if C.total.ndim == 1:
            return None
        return C.share(
            f"order of columns, damping {self.damping}, by activity {by_activity}, exact {exact}",
            lambda: ColumnOrder.from_hessian(C.symmetric_total(), by_activity, self.damping, exact=exact),
        )

    def empty_codes(self, bits: int, shape: tuple[int, int], kept: int | None) -> PackedCodes:
        counts = [count for count in (kept, self._kept(shape)) if count is not None]
        return super().empty_codes(bits, shape, min(counts, default=None))

    def _kept(self, shape: tuple[int, int]) -> int | None:
        """Number of weights that `sparsity` or `pattern` keeps; None if neither is set."""
        count = shape[0] * shape[1]
        if self.pattern is not None:
            n, m = parse_pattern(self.name, self.pattern)
            return count // m * n
        return None if self.sparsity is None else count - zero_count(self.sparsity, count)


@dataclass(frozen=True, kw_only=True)
class Gptq(FeedbackQuantization):
    """Rounds column by column; the columns still to come compensate for each error.

    H = C + λ I. The search for ranges weights an error of column j by 1 / [H^{-1}]_jj, its cost after the other columns
    have compensated for it. With `act_order`, an option of the paper's code, all grids are fitted before the sweep.
    Beyond the paper, they are then fitted again to the compensated weights of the first sweep, whose range is wider.
    Without `act_order`, the grid of a group is fitted when the sweep reaches it. The inputs of a word embedding never
    occur together, so nothing can compensate, and it is rounded as `rtn` does.

    Args:
        act_order: round columns in the order of diag C, largest first; otherwise from left to right.

    Reference:
        E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
        Pre-trained Transformers", ICLR 2023, arXiv 2210.17323.

    Example:
        >>> import torch
        >>> stats = LayerStats([InputCovariance.from_moment(torch.eye(4), count=10)])
        >>> weight = torch.tensor([[0.0, 1.1, 1.9, 3.0]])
        >>> Gptq(bits=2, clip=False).compress(weight, stats).dense()
        tensor([[0., 1., 2., 3.]])
    """

    name = "gptq"
    paper = "Frantar et al., ICLR 2023"
    needs = frozenset({InputCovariance})

    act_order: bool = True

    @property
    def pruner(self) -> KfacPrune:
        return KfacPrune(sparsity=self.sparsity, pattern=self.pattern, gradients=False, damping=self.damping)

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        W, mask = self.prune_first(weight, stats)
        order = self.column_order(stats, self.act_order)

        def solve(bits: int) -> PackedCodes:
            spec = self.quantizer_spec(bits, W.shape[1], mask)
            result = nearest(W, spec, None, mask) if order is None else gptq(W, order, spec, mask)
            return self.to_quantized(result, weight.dtype, mask)

        return solve
