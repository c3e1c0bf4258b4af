"""Plus: few bits or few weights everywhere, and a low rank for what that gets wrong.

Papers: C. Zhang et al., "QERA: an Analytical Framework for Quantization Error Reconstruction", ICLR 2025, arXiv
2410.06040 (the rank-r part in closed form, here with the curvature of the outputs too); R. Saha et al., "Compressing
Large Language Models using Low Rank and Low Precision Decomposition" (CALDERA), NeurIPS 2024, arXiv 2405.18886
(alternating, factors in few bits); M. Li et al., "SVDQuant", ICLR 2025, arXiv 2411.05007 (low rank first). With
ℓ(E) = ½ tr(F E C E^T), block-coordinate descent on

    min ℓ(W − S − A B),    S ← base(W − A B),    A B ← residual(W − S),

where an update is taken only if ℓ falls, so that it converges.
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
from laconic.methods.base import Candidate, Candidates, Method, digest_of
from laconic.methods.lowrank.kfac_svd import KfacSvd
from laconic.methods.lowrank.size import RankSized
from laconic.methods.prune.size import Pruning
from laconic.methods.quantize.gptq import Gptq
from laconic.methods.quantize.rtn import Rtn
from laconic.methods.quantize.size import FEWEST, MOST, Quantizing
from laconic.methods.unchanged import as_it_is
from laconic.numerics.loss import quadratic_loss

Part = Literal["base", "residual"]
SHARES = (0.05, 0.1, 0.2)
"""The fractions of the base's bytes that the ladder offers for the low-rank part."""
CONVERGED = 1e-3
"""Rounds end once one of them lowers the loss by less than this fraction."""


BASE, RESIDUAL = Gptq(), KfacSvd()


@dataclass(frozen=True, kw_only=True)
class Plus(Method):
    """A quantized or pruned matrix and a low-rank one, added.

    base:        the quantizing or pruning method.
    residual:    the low-rank method.
    first:       which of the two is solved first, without the other.
    rounds:      at most so many times both.
    factor_bits: bits of the factors, each row with a scale; None leaves them as the model's weights are.
    share:       the fraction of the bytes for the low rank, where `keep` gives the size of both.
    """

    name = "plus"
    family = "combination"
    paper = "Zhang et al., ICLR 2025; Saha et al., NeurIPS 2024"
    needs = frozenset({InputCovariance, GradCovariance})

    base: Method = BASE
    residual: Method = RESIDUAL
    first: Part = "base"
    rounds: Annotated[int, Field(ge=1)] = 3
    factor_bits: Annotated[int, Field(ge=FEWEST, le=MOST)] | None = 8
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.base, (Quantizing, Pruning)):
            raise must_be(f"{self.name}.base", "a method that quantizes or prunes", self.base.name)
        if not isinstance(self.residual, RankSized):
            raise must_be(f"{self.name}.residual", "a low-rank method", self.residual.name)
        if self.rounds < 1:
            raise must_be(f"{self.name}.rounds", "at least 1", self.rounds)
        if self.factor_bits is not None and not FEWEST <= self.factor_bits <= MOST:
            raise must_be(f"{self.name}.factor_bits", f"{FEWEST} to {MOST}", self.factor_bits)
        if not 0 < self.share < 1:
            raise must_be(f"{self.name}.share", "in (0, 1)", self.share)

    @property
    def asks(self) -> frozenset[type[Statistic]]:
        return self.needs | self.base.asks | self.residual.asks

    @property
    def has_size(self) -> bool:
        return self.base.has_size and self.residual.has_size

    @property
    def _base(self) -> Quantizing | Pruning:
        assert isinstance(self.base, (Quantizing, Pruning))
        return self.base

    @property
    def _residual(self) -> RankSized:
        assert isinstance(self.residual, RankSized)
        return self.residual

    def unsized(self) -> "Plus":
        return replace(self, base=self.base.unsized(), residual=self.residual.unsized())

    def at(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "Plus":
        budget = keep * shape[0] * shape[1] * dtype.itemsize
        sized = self
        for share in (self.share, 2 * self.share, 4 * self.share):
            base = self._base if self._base.has_size else self._base.at(keep * max(1 - share, 0.0), shape, dtype)
            rank = self._rank_in(budget - base.nbytes_for(shape, dtype), shape, dtype)
            sized = replace(self, base=base, residual=self._residual.with_rank(max(rank, 1)))
            if rank >= 1:
                break
        return sized

    def larger(self, shape: tuple[int, int], *, finest: bool = False) -> "Plus | None":
        """One rank more beside the same base."""
        rank = self._residual.rank_of(shape) + 1
        return replace(self, residual=self._residual.with_rank(rank)) if rank <= min(shape) else None

    def compress(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Sum:
        """The two formats side by side.

        Raises:
            UserError: a part has no size, or a weight is NaN or infinite.
        """
        if not self.has_size:
            raise UserError(f"{self.name} needs a size: give keep, or a size to both its base and its residual.")
        if not torch.isfinite(weight).all():
            raise UserError(f"{self.name} cannot compress weights that are NaN or infinite; check the model.")
        # Apart from what is remembered of the matrix itself: what is solved here is met once.
        return self._descent(weight, LayerStats(known, known.support))

    def empty_format(self, shape: tuple[int, int], kept: int | None = None) -> Sum:
        low = self._residual.empty_format(shape)
        if self.factor_bits is not None:
            each = _each_row(self.factor_bits)
            low.left, low.right = each.empty_format((shape[0], low.rank)), each.empty_format((low.rank, shape[1]))
        return Sum.of(self._base.empty_format(shape, kept), low)

    def candidates(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Candidates:
        shape = (weight.shape[0], weight.shape[1])
        offered = self._offered(shape, weight.dtype)

        def predict() -> tuple[Tensor, Tensor, Tensor]:
            F, C = known[GradCovariance].matrix, known[InputCovariance].matrix
            results = [method.compress(weight, known) for method in offered]
            losses = [quadratic_loss(weight.double() - result.dense().double(), F, C) for result in results]
            sizes = torch.tensor([[result.nbytes(), result.parts[0].count] for result in results])
            return torch.tensor(losses).double(), sizes, torch.tensor(C.ndim == 1)

        losses, sizes, lookup = known.once(f"losses and sizes of {offered} of {digest_of(weight)}", predict)
        whole = () if lookup else (shape,)
        rungs = [stays := as_it_is(weight, known.support, whole)]
        for method, loss, (nbytes, numbers) in zip(offered, losses.tolist(), sizes.tolist(), strict=True):
            rank = method._residual.rank_of(shape)
            products = (*whole, *(() if lookup else ((rank, shape[1]),)), (shape[0], rank))
            more = rank * sum(shape)
            if nbytes < stays.nbytes:
                rungs.append(
                    Candidate(method=method, nbytes=nbytes, parameters=numbers + more, products=products, loss=loss)
                )
        return Candidates(tuple(sorted(rungs, key=lambda rung: rung.nbytes)))

    def _offered(self, shape: tuple[int, int], dtype: torch.dtype) -> list["Plus"]:
        """Each size of the base with some ranks, where the ranks are left open."""
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
        """The largest rank whose factors take so many bytes; 0 where none does."""
        m, n = shape
        if self.factor_bits is None:
            return min(int(nbytes / ((m + n) * dtype.itemsize)), m, n)
        each = _each_row(self.factor_bits)
        # A few bytes more than a straight line, as the last code of a factor is filled up.
        rank = min(int((nbytes - 2 * m) / ((m + n) * self.factor_bits / 8 + 2)), m, n)
        while rank > 0 and each.nbytes_for((m, rank), dtype) + each.nbytes_for((rank, n), dtype) > nbytes:
            rank -= 1
        return max(rank, 0)

    def _descent(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Sum:
        F, C = known[GradCovariance].matrix, known[InputCovariance].matrix
        parts: dict[str, Format] = {}
        loss = torch.inf
        order: tuple[Part, ...] = ("base", "residual") if self.first == "base" else ("residual", "base")
        for _ in range(self.rounds):
            before = loss
            for part in order:
                others = [format.dense().float() for name, format in parts.items() if name != part]
                target = weight.float() - sum(others, torch.zeros_like(weight, dtype=torch.float32))
                candidate = self._solved(part, target.to(weight.dtype), known)
                error = quadratic_loss(target.double() - candidate.dense().double(), F, C)
                if len(parts) < 2 or error < loss:
                    parts[part], loss = candidate, error
            if not loss < (1 - CONVERGED) * before:
                break
        return Sum.of(parts["base"], parts["residual"])

    def _solved(self, part: Part, target: Float[Tensor, "out in"], known: LayerStats) -> Format:
        if part == "base":
            return self._base.compress(target, known)
        low = self._residual.compress(target, known)
        assert isinstance(low, LowRank)
        return low if self.factor_bits is None else in_few_bits(low, self.factor_bits)


def _each_row(bits: int) -> Rtn:
    return Rtn(bits=bits, group_size="channel", symmetric=True)


def in_few_bits(low: LowRank, bits: int) -> LowRank:
    """The same product with each row of either factor on a grid of its own."""
    each = _each_row(bits)
    low.left = each.compress(dense_weight(low.left).detach(), LayerStats())
    low.right = each.compress(dense_weight(low.right).detach(), LayerStats())
    return low
