"""Ways to multiply rows by a matrix of codes on this processor, and which of them give right sums here.

A kernel is made for one matrix, and called with rows of inputs (rows, in) and the bias (out,) or None. None of them is
chosen for being there: each is tried on sums as large as they come, and then timed (`laconic.formats.autotune`). What
differs between int8 and codes of a few bits is a `KernelFamily`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

ALIGNED = 64
"""Bytes to whose multiples torch aligns what it allocates; vector instructions ask for 16 to 64."""

DECODED, DENSE = "decoded", "dense"
"""The kernels that every family has, though not every one lets `dense` be chosen."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of the inputs."""

UNAVAILABLE = (RuntimeError, AttributeError)
"""What torch raises where an operator, or the library behind it, is not built for this processor."""

TRIED_ROWS = 64
CLOSE = {torch.float32: 1e-2, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""The relative error of a kernel that computes what it should: rounding of inputs, and no overflow."""

M = TypeVar("M")


class Kernel(ABC):
    """y = W x + bias for one matrix."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        """The products, in the dtype of `x`."""

    @property
    def nbytes(self) -> int:
        """What it keeps beside the matrix that it was made of."""
        return 0


class Dense(Kernel):
    """The matrix multiplied out and kept: as fast as the layer that this replaced, and as large in memory."""

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        self._weight = weight

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        return linear(x, self._weight, bias)


class Decoded(Kernel):
    """The matrix multiplied out for each call and forgotten, which many rows pay for."""

    def __init__(self, dense: Callable[[], Float[Tensor, "out in"]]) -> None:
        self._dense = dense

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        return linear(x, self._dense(), bias)


class KernelFamily(ABC, Generic[M]):
    """Matrices that take as long as each other, of the same shape, whatever kernel multiplies by them.

    name:      says all that times depend on besides shape, rows, dtype and machine.
    label:     how reports call it.
    small:     the kernel of matrices that are too small to be worth a measurement.
    most_rows: with more than these, the matrix is decoded unmeasured.
    stand_ins: kernels that are less exact than another, by what they stand in for where that gives wrong sums.
    """

    name: str
    label: str
    small: str
    most_rows: float
    stand_ins: ClassVar[Mapping[str, str]] = {}

    @property
    @abstractmethod
    def makers(self) -> Mapping[str, Callable[[M, torch.dtype], Kernel]]:
        """The kernels that may be chosen; of those as fast as each other the first is."""

    @abstractmethod
    def example(self, shape: tuple[int, int], generator: torch.Generator) -> M:
        """A matrix to try and time kernels with."""

    @abstractmethod
    def dense(self, matrix: M, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The matrix multiplied out."""

    def expected(self, kernel: Kernel, matrix: M, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """What `kernel` should come to."""
        return x @ self.dense(matrix, x.dtype).T


def working(family: KernelFamily[M], matrix: M, x: Float[Tensor, "rows in"]) -> dict[str, Kernel]:
    """The kernels that this processor has and that agree with exact sums, the first choice first."""
    kernels: dict[str, Kernel] = {}
    x = x[:TRIED_ROWS]
    for name, make in family.makers.items():
        if family.stand_ins.get(name) in kernels:
            continue
        with suppress(*UNAVAILABLE):
            kernel = make(matrix, x.dtype)
            expected = family.expected(kernel, matrix, x)
            error, size = (kernel(x, None) - expected).float().norm(), expected.float().norm()
            if error <= CLOSE[x.dtype] * size:
                kernels[name] = kernel
    return kernels


def aligned(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy where it does not lie as torch would have put it."""
    in_place = tensor.data_ptr() % ALIGNED == 0
    return tensor.contiguous() if in_place else tensor.clone(memory_format=torch.contiguous_format)
