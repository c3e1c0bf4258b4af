"""Ways to multiply rows by a matrix of int8 codes.

On a processor without instructions for sums of bytes, oneDNN's are wrong for inputs of 8 bits (see
`laconic.numerics.int8`). fbgemm is not among them: torch reaches it by tensors of a quantized dtype only, which it is
about to remove.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from laconic.formats.kernels import ALIGNED, DECODED, DENSE, Decoded, Dense, Kernel, KernelFamily, aligned
from laconic.numerics.int8 import int8_product, on_steps

FULL, SAFE = 255, 127
"""Levels of the inputs: all of a byte, and as many as never overflow a sum of two products in 16 bits."""
FULL_ONEDNN, SAFE_ONEDNN = "onednn", "onednn, 7-bit inputs"


class Matrix(NamedTuple):
    """w = scale · code, the scale of an output being in fp32."""

    codes: Int8[Tensor, "out in"]
    scale: Float[Tensor, " out"]

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The matrix multiplied out, in fp32 and then rounded."""
        return self.codes.float().mul_(self.scale[:, None]).to(dtype)


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
        self._codes, self._scale = aligned(matrix.codes), matrix.scale.bfloat16()
        self._copied = self._codes.data_ptr() != matrix.codes.data_ptr()

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes if self._copied else 0

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        y = torch.ops.aten._weight_int8pack_mm(aligned(x.bfloat16()), self._codes, self._scale).to(x.dtype)
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


KERNELS: Mapping[str, Callable[[Matrix, torch.dtype], Kernel]] = {
    DECODED: lambda matrix, dtype: Decoded(partial(matrix.dense, dtype)),
    "weight-only": WeightOnly,
    FULL_ONEDNN: partial(OneDnn, levels=FULL),
    SAFE_ONEDNN: partial(OneDnn, levels=SAFE),
    DENSE: lambda matrix, dtype: Dense(matrix.dense(dtype)),
}
"""By name: what is called with a matrix and the dtype of its inputs. Of those as fast as each other the first is taken;
`dense` comes last, as it keeps the most."""


class Int8Family(KernelFamily[Matrix]):
    """Codes of 8 bits with a scale for each output."""

    name = label = "int8"
    # Calls cost more than products, so that nothing is faster.
    small = DENSE
    most_rows = inf
    stand_ins: ClassVar[Mapping[str, str]] = {SAFE_ONEDNN: FULL_ONEDNN}

    @property
    def makers(self) -> Mapping[str, Callable[[Matrix, torch.dtype], Kernel]]:
        return KERNELS

    def example(self, shape: tuple[int, int], generator: torch.Generator) -> Matrix:
        codes = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
        # Sums as large as they come.
        codes[0], codes[-1] = 127, -128
        return Matrix(codes, torch.rand(shape[0], generator=generator) / 127)

    def dense(self, matrix: Matrix, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        return matrix.dense(dtype)

    def expected(self, kernel: Kernel, matrix: Matrix, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        if isinstance(kernel, WholeNumbers):
            return int8_product(x, *matrix, kernel.levels)
        return x @ matrix.dense(x.dtype).T


INT8 = Int8Family()
