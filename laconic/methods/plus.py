"""Plus: Ŵ = S + A B, a quantized or pruned matrix S and a low-rank correction A B of its error.

Both parts minimise ½ tr(F E C E^T), E = W − S − A B, in turn: C. Zhang et al., "QERA", ICLR 2025, arXiv 2410.06040; R.
Saha et al., "CALDERA", NeurIPS 2024, arXiv 2405.18886.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.calibrate.statistics import Statistic
from laconic.errors import UserError, must_be
from laconic.formats import Format, LowRank, Sum, dense_weight
from laconic.methods.base import Candidate, Candidates, Method, digest
from laconic.methods.lowrank.base import LowRankMethod
from laconic.methods.lowrank.kfac_svd import KfacSvd
from laconic.methods.prediction import dense_candidate, predicted_losses
from laconic.methods.prune.base import PruningMethod
from laconic.methods.quantize.base import MAX_BITS, MIN_BITS, QuantizationMethod
from laconic.methods.quantize.gptq import Gptq
from laconic.methods.quantize.rtn import Rtn
from laconic.numerics.moments import check_finite, quadratic_loss

Part = Literal["base", "residual"]
SHARES = (0.05, 0.1, 0.2)
"""The fractions of the base's bytes that are offered for the low-rank part."""
CONVERGED = 1e-3
"""Rounds end once one of them lowers the loss by less than this fraction."""


BASE, RESIDUAL = Gptq(), KfacSvd()


@dataclass(frozen=True, kw_only=True)
class Plus(Method):
    """The sum of a quantized or pruned matrix and a low-rank one.

    Block-coordinate descent on ½ tr(F E C E^T), E = W − S − A B: S ← base(W − A B), then A B ← residual(W − S). An
    update is taken only if it lowers the loss, so the descent converges. It stops after `rounds`, or when a round
    lowers the loss by less than 0.1 %.

    Args:
        base: the quantizing or pruning method for S.
        residual: the low-rank method for A B.
        first: which of the two is solved first, for W itself.
        rounds: at most this many updates of both.
        factor_bits: bits of A and B, each row with a scale; none keeps them in the dtype of the model.
        share: fraction of the bytes for A B, where `keep` gives the size of both.

    Raises:
        UserError: base does not quantize or prune, or residual is not a low-rank method.

    Reference:
        C. Zhang et al., "QERA: an Analytical Framework for Quantization Error Reconstruction", ICLR 2025, arXiv
        2410.06040 (A B in closed form, here with the curvature of the outputs too); R. Saha et al., "Compressing Large
        Language Models using Low Rank and Low Precision Decomposition" (CALDERA), NeurIPS 2024, arXiv 2405.18886
        (alternating, factors in few bits); M. Li et al., "SVDQuant", ICLR 2025, arXiv 2411.05007 (low rank first).

    Example:
        >>> from laconic.methods import Svd
        >>> C, F = InputCovariance.from_moment(torch.eye(4), count=1), GradCovariance.from_total(torch.eye(4), count=1)
        >>> stats = LayerStats([C, F])
        >>> method = Plus(base=Rtn(bits=2), residual=Svd(rank=1), factor_bits=None)
        >>> layer = method.compress(torch.eye(4), stats)
        >>> [part.kind for part in layer.parts], layer.nbytes()
        (['quantized', 'low-rank'], 45)
    """

    name = "plus"
    family = "combination"
    paper = "Zhang et al., ICLR 2025; Saha et al., NeurIPS 2024"
    needs = frozenset({InputCovariance, GradCovariance})

    base: Method = BASE
    residual: Method = RESIDUAL
    first: Part = "base"
    rounds: Annotated[int, Field(ge=1)] = 3
    factor_bits: Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS)] | None = 8
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.base, (QuantizationMethod, PruningMethod)):
            raise must_be(f"{self.name}.base", "a method that quantizes or prunes", self.base.name)
        if not isinstance(self.residual, LowRankMethod):
            raise must_be(f"{self.name}.residual", "a low-rank method", self.residual.name)

    @property
    def required_statistics(self) -> frozenset[type[Statistic]]:
        return self.needs | self.base.required_statistics | self.residual.required_statistics

    @property
    def stores_lookups(self) -> bool:
        return not self.base.stores_rows

    @property
    def has_size(self) -> bool:
        return self.base.has_size and self.residual.has_size

    @property
    def _base(self) -> QuantizationMethod | PruningMethod:
        assert isinstance(self.base, (QuantizationMethod, PruningMethod))
        return self.base

    @property
    def _residual(self) -> LowRankMethod:
        assert isinstance(self.residual, LowRankMethod)
        return self.residual

    def without_size(self) -> "Plus":
        return replace(self, base=self.base.without_size(), residual=self.residual.without_size())

    def with_keep(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "Plus":
        budget = keep * shape[0] * shape[1] * dtype.itemsize
        sized = self
        for share in (self.share, 2 * self.share, 4 * self.share):
            base = self._base if self._base.has_size else self._base.with_keep(keep * max(1 - share, 0.0), shape, dtype)
            rank = self._rank_in(budget - base.nbytes_for(shape, dtype), shape, dtype)
            sized = replace(self, base=base, residual=self._residual.with_rank(max(rank, 1)))
            if rank >= 1:
                break
        return sized

    def next_larger(self, shape: tuple[int, int], *, finest: bool = False) -> "Plus | None":
        """A copy with one more rank and the same base."""
        rank = self._residual.rank_of(shape) + 1
        return replace(self, residual=self._residual.with_rank(rank)) if rank <= min(shape) else None

    def smallest_size(self, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "Plus":
        return min(self._offered_sizes(shape, dtype), key=lambda size: size.meta_format(shape).to(dtype).nbytes())

    def compress(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Sum:
        """Fit both parts, and return their sum.

        Raises:
            UserError: a part has no size, or a weight is NaN or infinite.
        """
        if not self.has_size:
            raise UserError(f"{self.name} needs a size: give keep, or a size to both its base and its residual.")
        check_finite(weight, f"{self.name} cannot compress weights that are NaN or infinite; check the model.")
        # A separate cache, because the matrices that are solved here do not occur again.
        return self._descent(weight, LayerStats(stats, stats.support))

    def meta_format(self, shape: tuple[int, int], kept: int | None = None) -> Sum:
        low = self._residual.meta_format(shape)
        if self.factor_bits is not None:
            rtn = _channel_rtn(self.factor_bits)
            low.left, low.right = rtn.meta_format((shape[0], low.rank)), rtn.meta_format((low.rank, shape[1]))
        return Sum.from_parts(self._base.meta_format(shape, kept), low)

    def candidates(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Candidates:
        shape = (weight.shape[0], weight.shape[1])
        offered = self._offered_sizes(shape, weight.dtype)

        def predict() -> tuple[Tensor, Tensor, Tensor]:
            results = [method.compress(weight, stats) for method in offered]
            sizes = torch.tensor([[result.nbytes(), result.parts[0].count] for result in results])
            lookup = torch.tensor(stats[InputCovariance].matrix.ndim == 1)
            return predicted_losses(weight, stats, results), sizes, lookup

        losses, sizes, lookup = stats.get_or_compute(f"losses and sizes of {offered} of {digest(weight)}", predict)
        dense_products = () if lookup else (shape,)
        candidates = [dense := dense_candidate(weight, stats.support, dense_products)]
        for method, loss, (nbytes, numbers) in zip(offered, losses.tolist(), sizes.tolist(), strict=True):
            rank = method._residual.rank_of(shape)
            products = (*dense_products, *(() if lookup else ((rank, shape[1]),)), (shape[0], rank))
            more = rank * sum(shape)
            if nbytes < dense.nbytes:
                candidates.append(
                    Candidate(method=method, nbytes=nbytes, parameters=numbers + more, products=products, loss=loss)
                )
        return Candidates(tuple(sorted(candidates, key=lambda candidate: candidate.nbytes)))

    def _offered_sizes(self, shape: tuple[int, int], dtype: torch.dtype) -> list["Plus"]:
        """Copies with each size of the base and a few ranks; a size or a rank that is set stays."""
        bases = [self._base] if self._base.has_size else self._base.sizes
        if self._residual.has_size:
            return [replace(self, base=base) for base in bases]
        pairs: dict[tuple[str, int], Plus] = {}
        for base in bases:
            for share in SHARES:
                rank = max(1, self._rank_in(share * base.nbytes_for(shape, dtype), shape, dtype))
                pairs[repr(base), rank] = replace(self, base=base, residual=self._residual.with_rank(rank))
        return list(pairs.values())

    def _rank_in(self, nbytes: float, shape: tuple[int, int], dtype: torch.dtype) -> int:
        """The largest rank whose factors fit into `nbytes`; 0 if none fits."""
        m, n = shape
        if self.factor_bits is None:
            return min(int(nbytes / ((m + n) * dtype.itemsize)), m, n)
        rtn = _channel_rtn(self.factor_bits)
        # Slightly more than linear in the rank, as the last byte of a factor is padded.
        rank = min(int((nbytes - 2 * m) / ((m + n) * self.factor_bits / 8 + 2)), m, n)
        while rank > 0 and rtn.nbytes_for((m, rank), dtype) + rtn.nbytes_for((rank, n), dtype) > nbytes:
            rank -= 1
        return max(rank, 0)

    def _descent(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Sum:
        F, C = stats[GradCovariance].matrix, stats[InputCovariance].matrix
        parts: dict[str, Format] = {}
        loss = torch.inf
        order: tuple[Part, ...] = ("base", "residual") if self.first == "base" else ("residual", "base")
        for _ in range(self.rounds):
            before = loss
            for part in order:
                others = [format.dense().float() for name, format in parts.items() if name != part]
                target = weight.float() - sum(others, torch.zeros_like(weight, dtype=torch.float32))
                candidate = self._solve_part(part, target.to(weight.dtype), stats)
                error = quadratic_loss(target.double() - candidate.dense().double(), F, C)
                if len(parts) < 2 or error < loss:
                    parts[part], loss = candidate, error
            if not loss < (1 - CONVERGED) * before:
                break
        return Sum.from_parts(parts["base"], parts["residual"])

    def _solve_part(self, part: Part, target: Float[Tensor, "out in"], stats: LayerStats) -> Format:
        if part == "base":
            return self._base.compress(target, stats)
        low = self._residual.compress(target, stats)
        assert isinstance(low, LowRank)
        return low if self.factor_bits is None else quantize_factors(low, self.factor_bits)


def _channel_rtn(bits: int) -> Rtn:
    return Rtn(bits=bits, group_size="channel", symmetric=True)


def quantize_factors(low: LowRank, bits: int) -> LowRank:
    """Quantize both factors in place, each row on a grid of its own.

    Args:
        low: a low-rank format whose factors are plain linears.
        bits: bits of each code, 2 to 8.

    Example:
        >>> quantize_factors(LowRank.from_factors(torch.eye(2), torch.eye(2)), bits=8).dense().round(decimals=2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    rtn = _channel_rtn(bits)
    low.left = rtn.compress(dense_weight(low.left).detach(), LayerStats())
    low.right = rtn.compress(dense_weight(low.right).detach(), LayerStats())
    return low
