"""Rounding in which weights that come later make up for the errors of those before; and zeros put in first.

With `sparsity` or `pattern` the matrix is pruned by `kfac-prune` on the same statistics before it is rounded. Z,
which that leaves, is the best that the mask allows, and there the loss has no slope: of any Ŵ with the same zeros it is
the sum of that of W − Z and that of Z − Ŵ. So to round Z is to prune and round W at once, all made up for together.
`sparsity` is no size: `bits` is, and the zeros are the same for every number of them.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.errors import UserError, must_be
from laconic.formats import Quantized
from laconic.methods.prune.kfac_prune import KfacPrune
from laconic.methods.prune.scored import check_divides, indivisible, n_of_m
from laconic.methods.quantize.affine import Affine
from laconic.numerics.grid import Spacing
from laconic.numerics.masks import zeros_for

Start = tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"] | None]
"""A matrix, and where it is kept; None where all of it is."""


@dataclass(frozen=True, kw_only=True)
class Feedback(Affine):
    """A method that makes up for errors as it rounds.

    sparsity: the fraction of the matrix that is zero afterwards, zeros of an earlier step included.
    pattern:  `N:M`, N weights kept of every M consecutive inputs, in its place.
    damping:  regularises C, as a fraction of the mean of its diagonal.
    """

    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    pattern: str | None = None
    damping: Annotated[float, Field(gt=0)] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise must_be(f"{self.name}.sparsity", "in [0, 1)", self.sparsity)
        if self.pattern is not None and self.sparsity is not None:
            raise UserError(f"{self.name} takes either sparsity or pattern; got both.")
        if self.pattern is not None:
            n_of_m(self.name, self.pattern)
        if not self.damping > 0:
            raise must_be(f"{self.name}.damping", "above 0", self.damping)

    @property
    @abstractmethod
    def pruner(self) -> KfacPrune:
        """What chooses the weights that are kept, and fits them."""

    def shape_error(self, shape: tuple[int, int], matrix: str) -> UserError | None:
        if self.pattern is None:
            return None
        return indivisible(self.name, n_of_m(self.name, self.pattern), shape[1], matrix)

    def start(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Start:
        """What is to be rounded, and where it is to be zero.

        Raises:
            UserError: the pattern does not divide the width.
        """
        if self.sparsity is None and self.pattern is None:
            return weight, known.support
        if self.pattern is not None:
            check_divides(self.name, n_of_m(self.name, self.pattern), weight.shape[1])
        pruned = self.pruner.compress(weight, known)
        return pruned.dense(), pruned.support

    def spacing(self, bits: int, width: int) -> Spacing:
        """What is asked of the grids of a matrix of so many columns."""
        return Spacing(bits, self.group_of(width), self.symmetric, self.clip)

    def empty(self, bits: int, shape: tuple[int, int], kept: int | None) -> Quantized:
        counts = [count for count in (kept, self._kept(shape)) if count is not None]
        return super().empty(bits, shape, min(counts, default=None))

    def _kept(self, shape: tuple[int, int]) -> int | None:
        """Weights that its own zeros leave; None where it makes none."""
        count = shape[0] * shape[1]
        if self.pattern is not None:
            n, m = n_of_m(self.name, self.pattern)
            return count // m * n
        return None if self.sparsity is None else count - zeros_for(self.sparsity, count)
