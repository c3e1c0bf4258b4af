"""The base class of all methods. A method compresses one weight matrix: `compress(weight, stats) -> Format`.

It never sees a module, a model, a device or a file. A method is a frozen dataclass of its hyper-parameters, so that one
object is the algorithm, its configuration and a line of a recipe. `candidates` lists the sizes that a method offers for
a matrix with their predicted losses; `laconic.allocate` chooses among them.
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

LOSS_STATISTICS: frozenset[type[Statistic]] = frozenset({InputCovariance, GradCovariance})
"""The statistics of the predicted loss ½ tr(F E C E^T), which `Method.candidates` reads."""

Products = tuple[tuple[int, int], ...]
"""Shapes (out, in) of dense matrices that a row of input is multiplied by in turn."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One size that a method offers for one matrix, with its cost and predicted loss.

    Args:
        method: the method with its size set; None for the unchanged matrix.
        nbytes: bytes on disk, bias excluded.
        parameters: numbers stored, bias excluded.
        products: shapes (out, in) of the dense matrices that a row of input is multiplied by in turn; empty for a
            word embedding, whose rows are looked up.
        loss: predicted increase of the KL divergence, ½ tr(F E C E^T), in nats per prediction.
        nanoseconds: time of `products` in one forward pass; 0 until it is measured.

    Example:
        >>> Candidate(method=None, nbytes=24, parameters=6, products=((2, 3),), loss=0.0).macs
        6
    """

    method: "Method | None"
    nbytes: int
    parameters: int
    products: Products
    loss: float
    nanoseconds: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one row of input."""
        return sum(out_features * in_features for out_features, in_features in self.products)


@dataclass(frozen=True)
class Candidates:
    """Every size offered for one matrix, the unchanged matrix included.

    `first | second` joins the candidates of two methods. An allocator that gets them chooses the method of each matrix
    as well.

    Args:
        all: the candidates; exactly one of them has no method.

    Example:
        >>> dense = Candidate(method=None, nbytes=24, parameters=6, products=((2, 3),), loss=0.0)
        >>> Candidates((dense,)).dense is dense
        True
    """

    all: tuple[Candidate, ...]

    @property
    def dense(self) -> Candidate:
        """The candidate that does not change the matrix."""
        return next(candidate for candidate in self.all if candidate.method is None)

    def __or__(self, other: "Candidates") -> "Candidates":
        return Candidates(self.all + other.all)


@dataclass(frozen=True, kw_only=True)
class Method(ABC, metaclass=Typed):
    """One algorithm that compresses one weight matrix.

    The constructor checks every parameter against its annotation (`laconic.typed`).

    Example:
        >>> from laconic.methods import Svd
        >>> method = Svd(multiple=1).with_keep(0.5, shape=(8, 8))
        >>> method
        Svd(rank=2, rank_ratio=None, multiple=1)
        >>> method.compress(torch.eye(8), LayerStats()).nbytes()
        128
    """

    name: ClassVar[str]
    """The name in recipes and on the command line."""
    family: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[type[Statistic]]]
    """The statistics that `compress` may read."""
    shares_inputs: ClassVar[bool] = False
    """True where `compress` returns a `LowRank`, so that matrices with one input can share its right factor."""

    caches_solution: ClassVar[bool] = False
    """True if results cached by `LayerStats.get_or_compute` serve every size, so that the statistics can be dropped."""

    example: ClassVar[str] = ""
    """Parameters of the example in the command line's help."""

    keeps_support: ClassVar[bool] = False
    """True where weights outside `LayerStats.support` stay zero."""

    @property
    def fills_zeros(self) -> bool:
        """Whether weights that an earlier step pruned may become nonzero, with the present parameters."""
        return not self.keeps_support

    @property
    def stores_lookups(self) -> bool:
        """Whether the result can stand for a word embedding, with the present parameters."""
        return True

    @property
    def stores_rows(self) -> bool:
        """Whether single rows of the result are decoded, with the present parameters.

        A word embedding is then given to the method by tokens, (vocabulary, width), and one that is tied to a head
        reads the rows of the head.
        """
        return False

    def for_shape(self, shape: tuple[int, int]) -> "Method":
        """The method for a matrix of `shape` (out, in): this one, or one of a similar size that fits it."""
        return self

    @property
    def required_statistics(self) -> frozenset[type[Statistic]]:
        """The statistics that `compress` reads with the present parameters; all of `needs` by default."""
        return self.needs

    @abstractmethod
    def compress(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Format:
        """Compress one matrix.

        Args:
            weight: the matrix.
            stats: at least the `required_statistics` of the layer.

        Returns:
            The compressed matrix in the dtype of `weight`, without a bias.

        Raises:
            UserError: no size is set, or a weight is NaN or infinite.
        """

    @abstractmethod
    def meta_format(self, shape: tuple[int, int], kept: int | None = None) -> Format:
        """The format that `compress` would return, on the meta device: its size without its numbers.

        Args:
            shape: (out, in) of the matrix.
            kept: nonzero weights that an earlier pruning step left; None if nothing was pruned.

        Returns:
            The format; where no size is set, that of a small one.
        """

    def shape_error(self, shape: tuple[int, int], matrix: str) -> UserError | None:
        """The error if the size does not fit a `shape` (out, in), else None; `matrix` is a name for the message."""
        return None

    @abstractmethod
    def with_keep(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "Method":
        """A copy with the largest size that keeps at most a fraction of a matrix's bytes.

        Args:
            keep: the fraction of bytes, above 0.
            shape: (out, in) of the matrix.
            dtype: the dtype of the uncompressed matrix.

        Returns:
            The copy. It has the smallest size if even that takes more bytes.
        """

    def next_larger(self, shape: tuple[int, int], *, finest: bool = False) -> "Method | None":
        """A copy with the next larger size.

        Args:
            shape: (out, in) of the matrix.
            finest: take the smallest possible step, not a multiple that runs faster.

        Returns:
            The copy. None if it would be no smaller than the matrix, or if the method has few sizes, such as 2 to 8
            bits.
        """
        return None

    def smallest_size(self, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "Method":
        """A copy with the smallest size among the `candidates` for a matrix of `shape` (out, in) in `dtype`."""
        return self.with_keep(1e-9, shape, dtype)

    def overhead(self, dtype: torch.dtype) -> float:
        """The fraction of a matrix's bytes in `dtype` that every size takes, such as the mask of pruned weights."""
        return 0.0

    @abstractmethod
    def without_size(self) -> "Method":
        """A copy whose size is not set."""

    @property
    @abstractmethod
    def has_size(self) -> bool:
        """Whether the size is set, so that no `keep` is needed."""

    @abstractmethod
    def candidates(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Candidates:
        """Every size offered for one matrix, with the predicted loss.

        Args:
            weight: the matrix.
            stats: `required_statistics` and LOSS_STATISTICS of the layer.
        """


def statistics_for(methods: Iterable[Method], predict_loss: bool) -> frozenset[type[Statistic]]:
    """The statistics that several methods read.

    Args:
        methods: the methods.
        predict_loss: add LOSS_STATISTICS, which `Method.candidates` reads.

    Example:
        >>> from laconic.methods import Svd
        >>> sorted(kind.__name__ for kind in statistics_for([Svd()], predict_loss=True))
        ['GradCovariance', 'InputCovariance']
    """
    needed = frozenset[type[Statistic]]().union(*(method.required_statistics for method in methods))
    return needed | LOSS_STATISTICS if predict_loss else needed


def digest(weight: Float[Tensor, "out in"]) -> str:
    """A hash of a matrix's content, for keys of `LayerStats.get_or_compute` and for seeds.

    Example:
        >>> digest(torch.zeros(1, 1))
        '11d2df4e979aa105cf552e9544ebd2b5'
    """
    # For a matrix with one column, torch calls any stride contiguous.
    numbers = weight.contiguous().view(-1).cpu()
    return hashlib.blake2b(numbers.view(torch.uint8).numpy().data, digest_size=16).hexdigest()
