"""How many zeros a pruning method leaves: `sparsity`, or `at` a fraction of bytes, and the sizes on its ladder.

Sparsity is the fraction of zeros in the whole matrix. Zeros of an earlier step (`LayerStats.support`) stay, and count;
where they are more than is asked for, they are all there is. A matrix that loses nothing is left as it is, bit
by bit. On disk the result is a bit for each weight and the values that are kept.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.errors import UserError, must_be
from laconic.formats import Sparse
from laconic.methods.base import Candidate, Candidates, Method, digest_of
from laconic.methods.unchanged import as_it_is
from laconic.numerics.loss import quadratic_loss
from laconic.numerics.masks import zeros_for

GRID = tuple(part / 20 for part in range(2, 20))
"""The sparsities that a ladder offers: 0.1, 0.15, … 0.95."""

Size = float | tuple[int, int]
"""A sparsity, or N of every M."""

Solver = Callable[[Size], Sparse]
"""One matrix pruned to any size."""


@dataclass(frozen=True, kw_only=True)
class Pruning(Method):
    """A method whose result is a `Sparse` of a chosen sparsity.

    sparsity: the fraction of every matrix that is zero afterwards, zeros of an earlier step included; in place of
              `keep`.
    """

    family: ClassVar[str] = "pruning"
    keeps_support: ClassVar[bool] = True

    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise must_be(f"{self.name}.sparsity", "in [0, 1)", self.sparsity)

    @abstractmethod
    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        """What prunes `weight` to any size; the work that all sizes share is done once."""

    @abstractmethod
    def grain(self, shape: tuple[int, int]) -> int:
        """How many weights go at a time, so that what is kept is a multiple of it."""

    @property
    def size(self) -> Size | None:
        """What was asked for; None where nothing was."""
        return None if self.sparsity is None else float(self.sparsity)

    @property
    def grid(self) -> tuple[float, ...]:
        """The sparsities on its ladder."""
        return GRID

    @property
    def has_size(self) -> bool:
        return self.size is not None

    @property
    def sizes(self) -> "list[Pruning]":
        """Every size on its ladder."""
        return [self.with_sparsity(sparsity) for sparsity in self.grid]

    def nbytes_for(self, shape: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes on disk of a matrix of `shape` in `dtype` where nothing was pruned before; its size is set."""
        return self.empty_format(shape).to(dtype).nbytes()

    def empty_format(self, shape: tuple[int, int], kept: int | None = None) -> Sparse:
        size, (m, n) = 0.5 if self.size is None else self.size, shape
        if isinstance(size, tuple):
            left = n % size[1]
            count = m * (n // size[1] * size[0] + left)
        else:
            grain = self.grain(shape)
            count = m * n - zeros_for(size, m * n // grain) * grain
        # Zeros of a step before need not follow the pattern.
        pattern = size if isinstance(size, tuple) and n % size[1] == 0 and kept is None else None
        with torch.device("meta"):
            layer = Sparse(m, n, count if kept is None else min(count, kept), bias=False, pattern=pattern)
        layer.unpack()
        return layer

    def compress(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Sparse:
        """The pruned matrix.

        Raises:
            UserError: no size was set, the size does not fit the shape, or a weight is NaN or infinite, which a score
                would hide.
        """
        if self.size is None:
            raise UserError(f"{self.name} needs a size: give keep, or {self.name}:sparsity=S with S in [0, 1).")
        if not torch.isfinite(weight).all():
            raise UserError(f"{self.name} cannot prune weights that are NaN or infinite; check the model.")
        return self.solver(weight, known)(self.size)

    def at(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "Pruning":
        grain = self.grain(shape)
        grains = shape[0] * shape[1] // grain
        values = (keep - self.overhead(dtype)) * shape[0] * shape[1]
        # The mask is rounded up to whole bytes, which may cost one more value; 0.29 · 800 is 231.99….
        spare = values - 1 if shape[0] * shape[1] % 8 else values
        kept = min(max(int(spare / grain + 1e-9), 1), grains)
        return self.with_sparsity(1 - kept / grains)

    def larger(self, shape: tuple[int, int], *, finest: bool = False) -> "Pruning | None":
        if not isinstance(self.size, float):
            return None
        grains = shape[0] * shape[1] // self.grain(shape)
        kept = grains - zeros_for(self.size, grains) + 1
        return self.with_sparsity(1 - kept / grains) if kept < grains else None

    def overhead(self, dtype: torch.dtype) -> float:
        return 1 / (8 * dtype.itemsize)

    def unsized(self) -> "Pruning":
        return replace(self, sparsity=None)

    def with_sparsity(self, sparsity: float) -> "Pruning":
        """This method at another sparsity."""
        return replace(self.unsized(), sparsity=sparsity)

    def candidates(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Candidates:
        offered = self._offered((weight.shape[0], weight.shape[1]), known.support)

        def predict() -> tuple[Tensor, Tensor, Tensor]:
            F, C = known[GradCovariance].matrix, known[InputCovariance].matrix
            solve = self.solver(weight, known)
            results = [solve(sparsity) for sparsity in offered]
            losses = [quadratic_loss(weight.double() - result.dense().double(), F, C) for result in results]
            sizes = [[result.nbytes(), result.kept] for result in results]
            return torch.tensor(losses).double(), torch.tensor(sizes).long().reshape(-1, 2), torch.tensor(C.ndim == 1)

        name = f"losses at {offered} of {self.unsized()} of {digest_of(weight)}"
        losses, sizes, lookup = known.once(name, predict)
        products = () if lookup else ((weight.shape[0], weight.shape[1]),)
        rungs = [
            Candidate(method=self.with_sparsity(sparsity), nbytes=nbytes, parameters=kept, products=products, loss=loss)
            for sparsity, (nbytes, kept), loss in zip(offered, sizes.tolist(), losses.tolist(), strict=True)
        ]
        stays = as_it_is(weight, known.support, products)
        return Candidates((*(rung for rung in reversed(rungs) if rung.nbytes < stays.nbytes), stays))

    def _offered(self, shape: tuple[int, int], support: Bool[Tensor, "out in"] | None) -> list[float]:
        """Of the grid, each that leaves more zeros than the one before, and than there are."""
        grain = self.grain(shape)
        grains = shape[0] * shape[1] // grain
        there = 0 if support is None else int((~support).sum())
        zeros = {zeros_for(sparsity, grains): sparsity for sparsity in reversed(self.grid)}
        return [sparsity for count, sparsity in sorted(zeros.items()) if there < count * grain and count < grains]
