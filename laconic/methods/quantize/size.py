"""How few bits a quantizing method leaves: `bits`, or `at` a fraction of bytes, and the bits on its ladder.

`group_size` columns of a row share a scale, the last group of a row being shorter where the width is no multiple of it;
a `channel` is a whole row, and `tensor` stands for one scale in all. Zeros of an earlier step (`LayerStats.support`)
stay zero, and only the codes of the others are stored.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.errors import UserError, must_be
from laconic.formats import Coded
from laconic.methods.base import Candidate, Candidates, Method, digest_of
from laconic.methods.unchanged import as_it_is
from laconic.numerics.grid import LARGEST_SCALE
from laconic.numerics.loss import quadratic_loss

FEWEST, MOST = 2, 8

Solver = Callable[[int], Coded]
"""One matrix in so many bits."""


@dataclass(frozen=True, kw_only=True)
class Quantizing(Method):
    """A method whose result is codes of a chosen number of bits.

    bits:       of each code; in place of `keep`.
    group_size: columns of a row that share a scale, or `channel` for a whole row, `tensor` for the whole matrix.
    """

    family: ClassVar[str] = "quantization"
    keeps_support: ClassVar[bool] = True

    bits: Annotated[int, Field(ge=FEWEST, le=MOST)] | None = None
    group_size: Annotated[int, Field(ge=1)] | Literal["channel", "tensor"] = 64

    def __post_init__(self) -> None:
        if self.bits is not None and not FEWEST <= self.bits <= MOST:
            raise must_be(f"{self.name}.bits", f"{FEWEST} to {MOST}", self.bits)
        if isinstance(self.group_size, int) and self.group_size < 1:
            raise must_be(f"{self.name}.group_size", "at least 1, or channel or tensor", self.group_size)

    @abstractmethod
    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        """What puts `weight` into any number of bits; the work that all of them share is done once."""

    @abstractmethod
    def empty(self, bits: int, shape: tuple[int, int], kept: int | None) -> Coded:
        """The format of a matrix of `shape`, without its codes; `kept` weights of it are not zero, or all if None."""

    def empty_format(self, shape: tuple[int, int], kept: int | None = None) -> Coded:
        with torch.device("meta"):
            return self.empty(FEWEST if self.bits is None else self.bits, shape, kept)

    def nbytes_at(self, bits: int, shape: tuple[int, int]) -> int:
        """Bytes on disk of a matrix of `shape` where nothing was pruned."""
        return self.with_bits(bits).empty_format(shape).nbytes()

    @property
    def has_size(self) -> bool:
        return self.bits is not None

    @property
    def sizes(self) -> "list[Quantizing]":
        """Every size on its ladder."""
        return [self.with_bits(bits) for bits in range(FEWEST, MOST + 1)]

    def nbytes_for(self, shape: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes on disk of a matrix of `shape` in `dtype` where nothing was pruned; its size is set."""
        assert self.bits is not None
        return self.nbytes_at(self.bits, shape)

    def group_of(self, width: int) -> int | None:
        """Columns that share a scale; None where all weights do."""
        if isinstance(self.group_size, int):
            return min(self.group_size, width)
        return width if self.group_size == "channel" else None

    def compress(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Coded:
        """The matrix in codes.

        Raises:
            UserError: no size was set, or a weight is NaN, infinite or beyond what a scale of 16 bits can hold.
        """
        if self.bits is None:
            raise UserError(f"{self.name} needs a size: give keep, or {self.name}:bits=B with B from 2 to 8.")
        check_range(weight, self.name)
        return self.solver(weight, known)(self.bits)

    def at(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "Quantizing":
        budget = keep * shape[0] * shape[1] * dtype.itemsize
        fitting = [bits for bits in range(FEWEST, MOST + 1) if self.nbytes_at(bits, shape) <= budget]
        return self.with_bits(max(fitting, default=FEWEST))

    def unsized(self) -> "Quantizing":
        return self.with_bits(None)

    def with_bits(self, bits: int | None) -> "Quantizing":
        """This method at another number of bits."""
        return replace(self, bits=bits)

    def candidates(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Candidates:
        offered = range(FEWEST, MOST + 1)

        def predict() -> tuple[Tensor, Tensor]:
            F, C = known[GradCovariance].matrix, known[InputCovariance].matrix
            solve = self.solver(weight, known)
            results = [solve(bits) for bits in offered]
            losses = [quadratic_loss(weight.double() - result.dense().double(), F, C) for result in results]
            return torch.tensor(losses).double(), torch.tensor([[result.nbytes(), result.count] for result in results])

        losses, sizes = known.once(f"losses in {offered} of {self.unsized()} of {digest_of(weight)}", predict)
        lookup = known[InputCovariance].matrix.ndim == 1
        products = () if lookup else ((weight.shape[0], weight.shape[1]),)
        stays = as_it_is(weight, known.support, products)
        rungs = [
            Candidate(method=self.with_bits(bits), nbytes=nbytes, parameters=kept, products=products, loss=loss)
            for bits, (nbytes, kept), loss in zip(offered, sizes.tolist(), losses.tolist(), strict=True)
            if nbytes < stays.nbytes
        ]
        return Candidates((*rungs, stays))


def check_range(weight: Float[Tensor, "out in"], method: str) -> None:
    """Raise UserError where a weight is NaN, infinite or beyond what a scale of 16 bits can hold."""
    if not torch.isfinite(weight).all():
        raise UserError(f"{method} cannot quantize weights that are NaN or infinite; check the model.")
    if weight.abs().max() > LARGEST_SCALE:
        raise UserError(f"{method} cannot quantize weights beyond {LARGEST_SCALE:.0f}; check the model.")
