"""Dynamic int8: weights as int8 codes, inputs rounded to 8 bits at run time, and the kernels that multiply them.

A row x of inputs is put on `levels` even steps between its smallest and largest value: q = round((x − l) / s),
s = (h − l) / levels. As x ≈ l + s q, a weight w = d c with c an integer in [−128, 127] gives

    y_i = s d_i Σ_j q_j c_ij + l d_i Σ_j c_ij.

The first sum is of integers and exact, the second is computed beforehand. (Dynamic quantization by token: Z. Yao et
al., "ZeroQuant", NeurIPS 2022, arXiv 2206.01861, section 4.1; here with a zero point.)

With 255 levels the sum of two products of a byte and a code can exceed 16 bits, and processors without instructions for
such sums let it overflow; with 127 levels it cannot. Which kernel is used depends on the shape and the number of rows;
it is measured at the first call (`laconic.formats.autotune`).
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int8, Integer, UInt8
from torch import Tensor, nn

from laconic.formats.base import byte_parameter, empty_bytes
from laconic.formats.kernels import ALIGNED, DECODED, DENSE, DecodingKernel, DenseKernel, Kernel, KernelFamily, align
from laconic.formats.packed import PackedCodes
from laconic.formats.products import multiply
from laconic.numerics.packing import as_bytes, from_bytes
from laconic.numerics.scaling import TiedWeights, grid_indices


class LevelledInputs(NamedTuple):
    """Rows of inputs on even steps: x ≈ low + step · levels.

    Args:
        levels: numbers in [0, number of levels], whole once rounded.
        low: smallest value of each row.
        step: distance of two levels in each row; 0 for a constant row.
    """

    levels: Float[Tensor, "rows in"]
    low: Float[Tensor, "rows 1"]
    step: Float[Tensor, "rows 1"]


def to_levels(x: Float[Tensor, "rows in"], levels: int) -> LevelledInputs:
    """Scale each row to [0, levels], without rounding; a constant row becomes zeros.

    Args:
        x: the inputs.
        levels: 255 for the full range of a byte, 127 where sums of two products must fit into 16 bits.

    Example:
        >>> to_levels(torch.tensor([[1.0, 2.0, 3.0]]), 255).levels
        tensor([[  0.0000, 127.5000, 255.0000]])
    """
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (high - low) / levels
    inverse = torch.where(step > 0, 1 / step, 0)
    return LevelledInputs((x - low).mul_(inverse), low, step)


def int8_product(
    x: Float[Tensor, "rows in"], codes: Int8[Tensor, "out in"], scale: Float[Tensor, " out"], levels: int
) -> Float[Tensor, "rows out"]:
    """x Ŵ^T in the dtype of x, with inputs rounded to levels and exact sums: the reference for every kernel.

    Args:
        x: the inputs.
        codes: weights as int8.
        scale: scale of each output.
        levels: number of input levels.

    Example:
        >>> codes = torch.tensor([[1, 2]], dtype=torch.int8)
        >>> int8_product(torch.tensor([[0.0, 1.0]]), codes, torch.tensor([0.5]), levels=255)
        tensor([[1.]])
    """
    q, low, step = to_levels(x.float(), levels)
    sums = q.round().double() @ codes.double().T
    return (scale * (step * sums + low * codes.double().sum(1))).to(x.dtype)


FULL, SAFE = 255, 127
"""Levels of the inputs: the full range of a byte, and the most for which two products never overflow 16 bits."""
FULL_ONEDNN, SAFE_ONEDNN = "onednn", "onednn, 7-bit inputs"


class Int8Matrix(NamedTuple):
    """A matrix w = scale · code.

    Args:
        codes: int8 codes.
        scale: scale of each output, in fp32.

    Example:
        >>> Int8Matrix(torch.tensor([[1, -2]], dtype=torch.int8), torch.tensor([0.5])).dense(torch.float32)
        tensor([[ 0.5000, -1.0000]])
    """

    codes: Int8[Tensor, "out in"]
    scale: Float[Tensor, " out"]

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense matrix, computed in fp32 and cast to `dtype`."""
        return self.codes.float().mul_(self.scale[:, None]).to(dtype)


class WeightOnly(Kernel):
    """Multiplies inputs in bfloat16 by the codes; fast with a few rows, where most of the time is reading the matrix.

    torch reads codes in aligned blocks; a matrix that is loaded from a file may be unaligned, and is copied then.

    Raises:
        RuntimeError: the rows of the matrix are not aligned.
    """

    def __init__(self, matrix: Int8Matrix, dtype: torch.dtype) -> None:
        if matrix.codes.shape[1] % ALIGNED:
            raise RuntimeError(f"rows of {matrix.codes.shape[1]} codes are no multiple of {ALIGNED}")
        self._codes, self._scale = align(matrix.codes), matrix.scale.bfloat16()
        self._copied = self._codes.data_ptr() != matrix.codes.data_ptr()

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes if self._copied else 0

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        y = torch.ops.aten._weight_int8pack_mm(align(x.bfloat16()), self._codes, self._scale).to(x.dtype)
        return y if bias is None else y.add_(bias)


class WholeNumbers(Kernel):
    """Base class of kernels that round inputs to `levels` steps and multiply integers."""

    def __init__(self, matrix: Int8Matrix, dtype: torch.dtype, levels: int) -> None:
        self.levels = levels
        self._sums = matrix.scale * matrix.codes.long().sum(1)

    @abstractmethod
    def product(self, levels: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """d_i Σ_j q_j c_ij with q the rounded `levels`."""

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        q, low, step = to_levels(x.float(), self.levels)
        y = self.product(q).mul_(step).addcmul_(low, self._sums)
        return (y if bias is None else y.add_(bias)).to(x.dtype)


class OneDnn(WholeNumbers):
    """Integer products by oneDNN, which keeps a packed copy of the codes: one more byte for each weight."""

    def __init__(self, matrix: Int8Matrix, dtype: torch.dtype, levels: int) -> None:
        super().__init__(matrix, dtype, levels)
        self._packed = torch.ops.onednn.qlinear_prepack(matrix.codes, None)
        self._scale = matrix.scale
        self._zeros = torch.zeros(len(matrix.scale), dtype=torch.int32)

    @property
    def nbytes(self) -> int:
        return self._packed.numel()

    def product(self, levels: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        q = levels.round_().to(torch.uint8)
        weight_args, output_args = (self._packed, self._scale, self._zeros, None), (1.0, 0, torch.float32)
        return torch.ops.onednn.qlinear_pointwise(q, 1.0, 0, *weight_args, *output_args, "none", [], "")


KERNELS: Mapping[str, Callable[[Int8Matrix, torch.dtype], Kernel]] = {
    DECODED: lambda matrix, dtype: DecodingKernel(partial(matrix.dense, dtype), multiply),
    "weight-only": WeightOnly,
    FULL_ONEDNN: partial(OneDnn, levels=FULL),
    SAFE_ONEDNN: partial(OneDnn, levels=SAFE),
    DENSE: lambda matrix, dtype: DenseKernel(matrix.dense(dtype)),
}
"""Constructors of the kernels by name, called with a matrix and the dtype of its inputs. Of equally fast kernels the
first is chosen; `dense` is last, as it needs the most memory."""


class Int8Family(KernelFamily[Int8Matrix]):
    """Int8 codes with a scale for each output."""

    name = label = "int8"
    # The call takes longer than the product, so that no kernel is faster.
    small = DENSE
    max_rows = inf
    stand_ins: ClassVar[Mapping[str, str]] = {SAFE_ONEDNN: FULL_ONEDNN}

    @property
    def makers(self) -> Mapping[str, Callable[[Int8Matrix, torch.dtype], Kernel]]:
        return KERNELS

    def example(self, shape: tuple[int, int], generator: torch.Generator) -> Int8Matrix:
        codes = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
        # The largest sums that can occur.
        codes[0], codes[-1] = 127, -128
        return Int8Matrix(codes, torch.rand(shape[0], generator=generator) / 127)

    def dense(self, matrix: Int8Matrix, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        return matrix.dense(dtype)

    def expected(self, kernel: Kernel, matrix: Int8Matrix, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        if isinstance(kernel, WholeNumbers):
            return int8_product(x, *matrix, kernel.levels)
        return x @ matrix.dense(x.dtype).T


INT8 = Int8Family()


class DynamicInt8(PackedCodes):
    """y = Ŵ x + bias with ŵ = scale · code in int8, and inputs rounded to 8 bits where that is faster.

    Stored, in addition to the tensors of `PackedCodes`: `scales`, 16 bits for each output. Kernels that were called may
    keep more in memory: one more byte for each weight, or the dense matrix if no kernel is faster than a dense layer.

    Args:
        shape: (out, in).
        kept: number of nonzero weights; None if nothing was pruned.
        bias: whether there is a bias.

    Example:
        >>> layer = DynamicInt8.from_codes(torch.tensor([[1, -2]], dtype=torch.int8), scale=torch.tensor([0.5]))
        >>> layer.dense().tolist(), layer.nbytes()
        ([[0.5, -1.0]], 4)
    """

    kind = "dynamic-int8"

    def __init__(self, shape: tuple[int, int], kept: int | None = None, bias: bool = False) -> None:
        super().__init__(shape, 8, kept, bias)
        self.scales = empty_bytes(2 * shape[0])

    @classmethod
    def from_codes(
        cls,
        codes: Integer[Tensor, "out in"],
        scale: Float[Tensor, " out"],
        dtype: torch.dtype = torch.float32,
        mask: Bool[Tensor, "out in"] | None = None,
    ) -> "DynamicInt8":
        """The format of int8 codes, without a bias.

        Args:
            codes: the code of every weight.
            scale: scale of each output, stored in 16 bits.
            dtype: dtype of `dense()`.
            mask: True where a weight is kept. None keeps all.
        """
        kept = None if mask is None else int(mask.count_nonzero())
        layer = cls.uninitialized(codes.device, (codes.shape[0], codes.shape[1]), kept)
        layer.encode(codes.view(torch.uint8), mask)
        layer.scales = byte_parameter(as_bytes(scale))
        return layer.to(dtype)

    @property
    def kernel_family(self) -> KernelFamily[Any] | None:
        return INT8

    @property
    def matrix(self) -> Int8Matrix:
        """Codes and scales; pruned weights have the code 0."""
        scale, mask = from_bytes(self.scales.detach()), self.support
        codes = self.codes.detach().view(torch.int8)
        if mask is None:
            return Int8Matrix(codes.view(self.shape), scale)
        return Int8Matrix(
            torch.zeros(self.shape, dtype=torch.int8, device=mask.device).masked_scatter_(mask, codes), scale
        )

    def decode(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Float[Tensor, "rows columns"]:
        return codes.view(torch.int8).float().mul_(from_bytes(self.scales.detach())[:, None])

    def nearest_codes(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        scale = from_bytes(self.scales.detach())[:, None]
        steps = (weight.float() * torch.where(scale == 0, 0, 1 / scale)).round_().clamp_(-128, 127)
        return steps.to(torch.int8).view(torch.uint8)

    @property
    def shared_values(self) -> nn.Parameter:
        return self.scales

    def tied_weights(self, codes: Integer[Tensor, "out in"]) -> TiedWeights:
        return TiedWeights(grid_indices(self.shape, self.in_features, codes.device), codes.view(torch.int8).float())

    def dense(self) -> Float[Tensor, "out in"]:
        return self.matrix.dense(self.weight.dtype)

    def spec(self) -> dict[str, Any]:
        spec = self.coded_spec()
        del spec["bits"]
        return spec
