"""The base classes of kernels, which multiply rows of inputs by a matrix of codes on this processor.

A kernel is constructed for one matrix and called with inputs (rows, in) and a bias. A kernel may exist on a processor
and give wrong sums. So each one is tried on the largest possible sums, and then timed (`laconic.formats.autotune`). The
differences between int8 and int4 are in a `KernelFamily`.
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
"""torch aligns its allocations to this many bytes; vector instructions need 16 to 64."""

DECODED, DENSE = "decoded", "dense"
"""Kernels of every family; some families never choose `dense`."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of the inputs that kernels take."""

UNAVAILABLE = (RuntimeError, AttributeError)
"""Raised by torch where an operator, or its library, is not built for this processor."""

TRIED_ROWS = 64
CLOSE = {torch.float32: 1e-2, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""The largest relative error of a correct kernel, which comes from rounding its inputs."""

M = TypeVar("M")


class Kernel(ABC):
    """y = x W^T + bias for one matrix."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        """The products in the dtype of `x`."""

    @property
    def nbytes(self) -> int:
        """Bytes that the kernel keeps in addition to the matrix that it was constructed from."""
        return 0


class DenseKernel(Kernel):
    """Keeps the dense matrix: as fast as the layer that was replaced, and as large in memory.

    Example:
        >>> DenseKernel(torch.eye(2))(torch.ones(1, 2), None)
        tensor([[1., 1.]])
    """

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        self._weight = weight

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        return linear(x, self._weight, bias)


class DecodingKernel(Kernel):
    """Decodes the matrix at each call, which pays off with many rows.

    Args:
        dense: returns the dense matrix.
        product: multiplies inputs by the dense matrix and adds a bias.
        kept_nbytes: bytes that are kept to decode it.

    Example:
        >>> DecodingKernel(lambda: torch.eye(2))(torch.ones(1, 2), torch.ones(2))
        tensor([[2., 2.]])
    """

    def __init__(
        self,
        dense: Callable[[], Float[Tensor, "out in"]],
        product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = linear,
        kept_nbytes: int = 0,
    ) -> None:
        self._dense, self._product, self._kept_nbytes = dense, product, kept_nbytes

    @property
    def nbytes(self) -> int:
        return self._kept_nbytes

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        return self._product(x, self._dense(), bias)


class KernelFamily(ABC, Generic[M]):
    """The kernels for one kind of matrix. All matrices of a family and a shape take the same time.

    Attributes:
        name: text with everything that times depend on, except shape, rows, dtype and machine.
        label: the name in reports.
        small: the kernel for matrices that are too small to be worth measuring.
        max_rows: with more rows, the matrix is decoded without a measurement.
        stand_ins: the name of a more exact kernel, by the name of a kernel that is tried only if the more exact one
            gives wrong sums.
        keeps_decoder: whether layers keep the kernel `decoded` for the next product; else they decode without it.
    """

    name: str
    label: str
    small: str
    max_rows: float
    stand_ins: ClassVar[Mapping[str, str]] = {}
    keeps_decoder: ClassVar[bool] = False

    @property
    @abstractmethod
    def makers(self) -> Mapping[str, Callable[[M, torch.dtype], Kernel]]:
        """Constructors of the kernels by name; of kernels that are equally fast the first is chosen."""

    @abstractmethod
    def example(self, shape: tuple[int, int], generator: torch.Generator) -> M:
        """A random matrix to try and time kernels with."""

    @abstractmethod
    def dense(self, matrix: M, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense matrix."""

    def expected(self, kernel: Kernel, matrix: M, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """The correct result of `kernel`."""
        return x @ self.dense(matrix, x.dtype).T


def working_kernels(family: KernelFamily[M], matrix: M, x: Float[Tensor, "rows in"]) -> dict[str, Kernel]:
    """The kernels that this processor has and that compute correct sums.

    Args:
        family: the kernels.
        matrix: a matrix to try them with.
        x: inputs, of which the first 64 rows are used.

    Returns:
        Kernels by name, in the order of the family.
    """
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


def align(tensor: Tensor) -> Tensor:
    """`tensor`, or an aligned copy."""
    in_place = tensor.data_ptr() % ALIGNED == 0
    return tensor.contiguous() if in_place else tensor.clone(memory_format=torch.contiguous_format)
