"""A method solves one matrix: `compress(weight, known) -> Format`. It never sees a module, a model, a device or a file.

A method is at once the code, the configuration and the line of a recipe: a frozen dataclass of its parameters.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.errors import UserError
from laconic.formats import Format
from laconic.typed import Typed

PREDICTS_FROM: frozenset[type[Statistic]] = frozenset({InputCovariance, GradCovariance})
"""What `Method.candidates` needs beside what the method asks for: the two moments of the predicted loss."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One size that a method offers for one matrix, with its cost and predicted loss.

    method is fully specified, or None for the dense matrix; loss is ½ tr(F E C E^T), nats per prediction.
    nbytes (on disk) and parameters are those of the matrix, bias excluded; products are the shapes (out, in) of the
    dense matrices that a row of input is multiplied by in turn. nanoseconds is what these take in one forward pass; 0
    until it was measured.
    """

    method: "Method | None"
    nbytes: int
    parameters: int
    products: tuple[tuple[int, int], ...]
    loss: float
    nanoseconds: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates for a row of input."""
        return sum(out_features * in_features for out_features, in_features in self.products)


@dataclass(frozen=True)
class Candidates:
    """Every size offered for one matrix, the dense one included."""

    rungs: tuple[Candidate, ...]

    @property
    def dense(self) -> Candidate:
        """The one that changes nothing."""
        return next(rung for rung in self.rungs if rung.method is None)

    def __or__(self, other: "Candidates") -> "Candidates":
        """The choices of two methods together: allocating over them is the mixed-family search."""
        return Candidates(self.rungs + other.rungs)


@dataclass(frozen=True, kw_only=True)
class Method(ABC, metaclass=Typed):
    """One way to compress one matrix. What its fields are given is judged by their annotations (`laconic.typed`)."""

    name: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[type[Statistic]]]
    shares_inputs: ClassVar[bool] = False
    """True where `compress` gives a `LowRank`, so that matrices of one input can be solved as one and divided."""

    remembers: ClassVar[bool] = False
    """True where what `LayerStats.once` keeps of one size serves every other, without the statistics."""

    example: ClassVar[str] = ""
    """Parameters of an example, as `--method` takes them; it is given `keep` where that is no size."""

    keeps_support: ClassVar[bool] = False
    """True where every weight that `LayerStats.support` says is zero stays zero."""

    @property
    def asks(self) -> frozenset[type[Statistic]]:
        """The statistics that it asks for as it is set: `needs`, and more where a parameter says so."""
        return self.needs

    @abstractmethod
    def compress(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Format:
        """The compressed matrix, in the dtype of `weight`, which is the one it will be stored in.

        `known` holds at least what it `asks` for.

        Raises:
            UserError: the method's own size was not set.
        """

    @abstractmethod
    def empty_format(self, shape: tuple[int, int], kept: int | None = None) -> Format:
        """What `compress` makes of a matrix of `shape` (out, in), but for its numbers: a format on the meta device.

        A size that is not set is taken to be a small one. `kept` says how many weights an earlier step left; None where
        nothing was pruned.
        """

    def shape_error(self, shape: tuple[int, int], matrix: str) -> UserError | None:
        """What is wrong where the size that was set does not fit `matrix`, of `shape` (out, in)."""
        return None

    @abstractmethod
    def at(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "Method":
        """This method set so that a matrix of `shape` (out, in) keeps at most this fraction of its bytes in `dtype`.

        Where even its smallest size keeps more, that smallest size.
        """

    def larger(self, shape: tuple[int, int], *, finest: bool = False) -> "Method | None":
        """The next size above the one that is set, for a matrix of `shape` (out, in), smaller than the matrix itself.

        finest: by the smallest step there is, where `at` takes larger ones, which run faster.

        None where there is none, or where sizes are so few, as bits are, that matrices of one shape have the same.
        """
        return None

    def overhead(self, dtype: torch.dtype) -> float:
        """The fraction of a matrix's bytes in `dtype` that its result takes however few numbers that keeps."""
        return 0.0

    @abstractmethod
    def unsized(self) -> "Method":
        """This method without its size: what solutions of all sizes have in common, and what a plan may spell."""

    @property
    @abstractmethod
    def has_size(self) -> bool:
        """True once the method says itself how small it makes a matrix, so that no `keep` is needed."""

    @abstractmethod
    def candidates(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Candidates:
        """Every size it offers for this matrix, with the predicted loss; `known` also holds PREDICTS_FROM."""


def statistics_for(methods: Iterable[Method], predicting: bool) -> frozenset[type[Statistic]]:
    """Everything that `methods` need, and the two moments of the predicted loss when `predicting`."""
    needed = frozenset[type[Statistic]]().union(*(method.asks for method in methods))
    return needed | PREDICTS_FROM if predicting else needed


def digest_of(weight: Float[Tensor, "out in"]) -> str:
    """What tells the content of one matrix from that of any other; for `LayerStats.once` and for seeds."""
    # Of a matrix of one column, torch calls any stride contiguous.
    numbers = weight.contiguous().view(-1).cpu()
    return hashlib.blake2b(numbers.view(torch.uint8).numpy().data, digest_size=16).hexdigest()
