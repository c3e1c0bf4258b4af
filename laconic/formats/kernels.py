"""Ways to multiply rows by a matrix of int8 codes on this processor. Which is fastest, `fastest` measures.

A kernel is made for one matrix, and called with rows of inputs (rows, in) and the bias (out,) or None. None of them is
chosen for being there: on a processor without instructions for sums of bytes, oneDNN's are wrong for inputs of 8 bits
(see `laconic.numerics.int8`), so each is tried on such sums before it is timed. fbgemm is not among them: torch reaches
it by tensors of a quantized dtype only, which it is about to remove.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn.functional import linear

from laconic.numerics.int8 import on_steps

FULL, SAFE = 255, 127
"""Levels of the inputs: all of a byte, and as many as never overflow a sum of two products in 16 bits."""


ALIGNED = 64
"""Bytes to whose multiples torch aligns what it allocates; vector instructions ask for 16 to 64."""


class Matrix(NamedTuple):
    """w = scale · code, the scale of an output being in fp32."""

    codes: Int8[Tensor, "out in"]
    scale: Float[Tensor, " out"]

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The matrix multiplied out, in fp32 and then rounded."""
        return self.codes.float().mul_(self.scale[:, None]).to(dtype)


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

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        self._weight = matrix.dense(dtype)

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        return linear(x, self._weight, bias)


class Decoded(Kernel):
    """The matrix multiplied out for each call and forgotten, which many rows pay for."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        self._matrix, self._dtype = matrix, dtype

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        return linear(x, self._matrix.dense(self._dtype), bias)


class WeightOnly(Kernel):
    """Inputs in bfloat16 and codes as they are: for a few rows, whose time is that of reading the matrix.

    torch reads as many codes at once as the instructions allow, and takes it that they are aligned: what is loaded from
    a file may lie anywhere, and is copied then.

    Raises:
        RuntimeError: not every row of the matrix begins at an aligned place.
    """

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        if matrix.codes.shape[1] % ALIGNED:
            raise RuntimeError(f"rows of {matrix.codes.shape[1]} codes are no multiple of {ALIGNED}")
        self._codes, self._scale = _aligned(matrix.codes), matrix.scale.bfloat16()
        self._copied = self._codes.data_ptr() != matrix.codes.data_ptr()

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes if self._copied else 0

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        y = torch.ops.aten._weight_int8pack_mm(_aligned(x.bfloat16()), self._codes, self._scale).to(x.dtype)
        return y if bias is None else y.add_(bias)


class WholeNumbers(Kernel):
    """Inputs on `levels` steps, found row by row; the sums of integers are left to a library."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype, levels: int) -> None:
        self.levels = levels
        self._sums = matrix.scale * matrix.codes.long().sum(1)

    @abstractmethod
    def product(self, levels: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """d_i Σ_j q_j c_ij; q are `levels` rounded, which lie in [0, levels]."""

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        q, low, step = on_steps(x.float(), self.levels)
        y = self.product(q).mul_(step).addcmul_(low, self._sums)
        return (y if bias is None else y.add_(bias)).to(x.dtype)


class OneDnn(WholeNumbers):
    """Through oneDNN, which packs the codes for itself: another byte for each weight."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype, levels: int) -> None:
        super().__init__(matrix, dtype, levels)
        self._packed = torch.ops.onednn.qlinear_prepack(matrix.codes, None)
        self._scale = matrix.scale
        self._zeros = torch.zeros(len(matrix.scale), dtype=torch.int32)

    @property
    def nbytes(self) -> int:
        return self._packed.numel()

    def product(self, levels: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        q = levels.round_().to(torch.uint8)
        of_weight, of_output = (self._packed, self._scale, self._zeros, None), (1.0, 0, torch.float32)
        return torch.ops.onednn.qlinear_pointwise(q, 1.0, 0, *of_weight, *of_output, "none", [], "")


KERNELS = {
    "decoded": Decoded,
    "weight-only": WeightOnly,
    "onednn": partial(OneDnn, levels=FULL),
    "onednn, 7-bit inputs": partial(OneDnn, levels=SAFE),
    "dense": Dense,
}
"""By name: what is called with a matrix and the dtype of its inputs. Of those as fast as each other the first is taken;
`dense` comes last, as it keeps the most."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of the inputs."""

UNAVAILABLE = (RuntimeError, AttributeError)
"""What torch raises where an operator, or the library behind it, is not built for this processor."""


def _aligned(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy where it does not lie as torch would have put it."""
    return (
        tensor.contiguous() if tensor.data_ptr() % ALIGNED == 0 else tensor.clone(memory_format=torch.contiguous_format)
    )
