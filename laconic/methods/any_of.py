"""Any of several methods for each matrix, chosen together with the sizes, for the least predicted loss in a budget.

Quantization, pruning and low rank are good at different sizes and for different matrices. All of them predict their
loss in one unit, nats, so one budget can be divided among matrices and methods together: Y. Shoham, A. Gersho,
"Efficient bit allocation for an arbitrary set of quantizers", IEEE TASSP 1988.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.calibrate.statistics import Statistic
from laconic.errors import UserError, must_be
from laconic.formats import Format
from laconic.methods.base import Candidates, Method
from laconic.methods.lowrank.kfac_svd import KfacSvd
from laconic.methods.quantize.yaqa import Yaqa

METHODS: tuple[Method, ...] = (Yaqa(), Yaqa(sparsity=0.5), KfacSvd())
"""Few bits, few bits for half of the weights, and low rank."""


@dataclass(frozen=True, kw_only=True)
class AnyOf(Method):
    """One of several methods for each matrix. `allocate: spectrum` chooses it together with the sizes.

    The losses that methods predict are too low by different factors. These are measured for each method on copies of
    the model, and again on the resulting plan, so a plan of several methods takes longer than one of a single method.

    Args:
        methods: the methods, without sizes, such as `[yaqa, kfac-svd]`. A later one is used for equal fractions only
            where no earlier one is small enough.

    Raises:
        UserError: there are fewer than two methods, two are equal, or one has a size or a grid of llama.cpp's blocks.

    Reference:
        Y. Shoham, A. Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE Transactions on
        Acoustics, Speech, and Signal Processing 36(9), 1988.

    Example:
        >>> from laconic.methods import Rtn, Svd
        >>> method = AnyOf(methods=(Rtn(), Svd()))
        >>> method.with_keep(0.5, shape=(64, 64)).name, method.with_keep(0.05, shape=(64, 64)).name
        ('rtn', 'svd')
    """

    name = "any-of"
    family = "combination"
    paper = "Shoham & Gersho, IEEE TASSP 1988"
    needs = frozenset({InputCovariance, GradCovariance})
    example = "methods=[yaqa,kfac-svd]"

    methods: tuple[Method, ...] = METHODS

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if len(names) < 2:
            raise must_be(f"{self.name}.methods", "a list of at least two methods", names)
        if len(set(self.methods)) < len(names):
            raise must_be(f"{self.name}.methods", "methods that differ", names)
        sized = next((method.name for method in self.methods if method.has_size), None)
        if sized is not None:
            raise UserError(f"{self.name}.methods: '{sized}' must have no size; it follows from keep.")
        blocks = next((method.name for method in self.methods if method.stores_rows), None)
        if blocks is not None:
            raise UserError(
                f"{self.name}.methods: '{blocks}' must have no grid; one method alone chooses among llama.cpp's blocks "
                "with grid=any."
            )

    @property
    def required_statistics(self) -> frozenset[type[Statistic]]:
        return self.needs.union(*(method.required_statistics for method in self.methods))

    @property
    def fills_zeros(self) -> bool:
        return any(method.fills_zeros for method in self.methods)

    @property
    def stores_lookups(self) -> bool:
        return all(method.stores_lookups for method in self.methods)

    @property
    def has_size(self) -> bool:
        return False

    def without_size(self) -> "AnyOf":
        return self

    def overhead(self, dtype: torch.dtype) -> float:
        return min(method.overhead(dtype) for method in self.methods)

    def with_keep(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Method:
        """The first method that has a size within a fraction of a matrix's bytes; else that of the smallest size."""
        sized = [method.with_keep(keep, shape, dtype) for method in self.methods]
        limit = keep * shape[0] * shape[1] * dtype.itemsize
        within = [method for method in sized if _nbytes(method, shape, dtype) <= limit]
        return within[0] if within else min(sized, key=lambda method: _nbytes(method, shape, dtype))

    def smallest_size(self, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Method:
        sizes = [method.smallest_size(shape, dtype) for method in self.methods]
        return min(sizes, key=lambda method: _nbytes(method, shape, dtype))

    def meta_format(self, shape: tuple[int, int], kept: int | None = None) -> Format:
        return self.methods[0].meta_format(shape, kept)

    def compress(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Format:
        """Not possible: without a size, no method is chosen.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.name} needs a size: give keep, and allocate: spectrum.")

    def candidates(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Candidates:
        """The sizes of all methods, and the unchanged matrix once."""
        offered = [method.candidates(weight, stats) for method in self.methods]
        sized = [option for candidates in offered for option in candidates.all if option.method is not None]
        return Candidates((*sorted(sized, key=lambda option: option.nbytes), offered[0].dense))


def of_method(candidates: Candidates, method: Method) -> Candidates:
    """The candidates of one method, and the unchanged matrix.

    Args:
        candidates: those of several methods.
        method: the method, without a size.

    Example:
        >>> from laconic.methods import Rtn
        >>> C, F = InputCovariance.from_moment(torch.eye(8), count=1), GradCovariance.from_total(torch.eye(8), count=1)
        >>> offered = AnyOf(methods=(Rtn(), KfacSvd(multiple=1))).candidates(torch.eye(8), LayerStats([C, F]))
        >>> {option.method.name for option in of_method(offered, Rtn()).all if option.method}
        {'rtn'}
    """
    return Candidates(
        tuple(option for option in candidates.all if option.method is None or is_size_of(option.method, method))
    )


def is_size_of(sized: Method, method: Method) -> bool:
    """Whether one method is another with a size.

    Example:
        >>> is_size_of(Yaqa(bits=4), Yaqa()), is_size_of(Yaqa(bits=4, sparsity=0.5), Yaqa())
        (True, False)
    """
    return sized.without_size() == method


def _nbytes(method: Method, shape: tuple[int, int], dtype: torch.dtype) -> int:
    return method.meta_format(shape).to(dtype).nbytes()
