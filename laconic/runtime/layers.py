"""Layers of codes as they are exported: modules that are traced, never called on numbers.

Operators that torch has no name for are put into the graph by `torch.onnx.ops.symbolic`, which computes nothing.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from torch.onnx.ops import symbolic

from laconic.formats.int8 import FULL, Int8Matrix
from laconic.runtime.affine import Affine

NIBBLE = 4


class Portable(nn.Module):
    """A layer that stands for a format while it is exported. Its tensors are what the file will have."""

    label: ClassVar[str]
    """How reports call it."""
    weight: Tensor

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        # T5 asks for the dtype of a weight.
        self.register_buffer("weight", torch.empty(0))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.bias: Tensor | None

    def numbers(self, name: str, tensor: Tensor) -> None:
        """Keep `tensor` under `name`, to be written."""
        self.register_buffer(name, tensor.contiguous())

    def shifted(self, y: Float[Tensor, "*rows out"]) -> Float[Tensor, "*rows out"]:
        return y if self.bias is None else y + self.bias

    @property
    def nibbles(self) -> tuple[str, ...]:
        """Those of its tensors that hold whole numbers below 16, one a byte, to be written two a byte."""
        return ()

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors in the file, bias excluded."""
        sizes = {name: buffer.nbytes for name, buffer in self.named_buffers(recurse=False) if name != "bias"}
        return sum(size // 2 if name in self.nibbles else size for name, size in sizes.items())


class Integers(Portable):
    """int8 weights, inputs rounded row by row as `laconic.formats.int8` has it, and ONNX's MatMulInteger."""

    label = "int8, inputs rounded row by row"
    codes: Tensor
    scale: Tensor
    sums: Tensor

    def __init__(self, matrix: Int8Matrix, bias: Tensor | None) -> None:
        super().__init__(bias)
        self.numbers("codes", matrix.codes.T)
        self.numbers("scale", matrix.scale)
        self.numbers("sums", matrix.scale * matrix.codes.long().sum(1))

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        step = (high - low) / FULL
        inverse = torch.where(step > 0, 1 / step, 0.0)
        q = ((x - low) * inverse).round().to(torch.uint8)
        shape = (*x.shape[:-1], len(self.scale))
        sums = symbolic("MatMulInteger", (q, self.codes), dtype=torch.int32, shape=shape)
        return self.shifted(sums.float() * self.scale * step + low * self.sums)


class Scaled(Portable):
    """int8 weights and a scale for each output, by ONNX's DequantizeLinear: in OpenVINO, products of whole numbers.

    It rounds inputs too, in groups of so many as its DYNAMIC_QUANTIZATION_GROUP_SIZE says.
    """

    label = "int8, inputs rounded in groups"
    codes: Tensor
    scale: Tensor

    def __init__(self, matrix: Int8Matrix, bias: Tensor | None) -> None:
        super().__init__(bias)
        self.numbers("codes", matrix.codes)
        self.numbers("scale", matrix.scale)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        inputs, shape = (self.codes, self.scale), self.codes.shape
        matrix = symbolic("DequantizeLinear", inputs, {"axis": 0}, dtype=torch.float32, shape=shape)
        return self.shifted(linear(x, matrix))


class Blocks(Portable):
    """Codes of up to 4 bits in the blocks of ONNX Runtime's own MatMulNBits, which sums in float32."""

    label = "4-bit blocks"
    codes: Tensor
    scale: Tensor
    zeros: Tensor | None
    columns: Tensor | None

    def __init__(self, affine: Affine, block: int, bias: Tensor | None) -> None:
        super().__init__(bias)
        out, width = affine.shape
        count = -(-width // block)
        codes = pad(affine.codes, (0, count * block - width)).view(out, count, block)
        self.numbers("codes", _two_a_byte(codes))
        each = max(1, affine.group // block) if affine.scale.shape[1] > 1 else count
        self.numbers("scale", affine.scale.repeat_interleave(each, dim=1)[:, :count])
        zeros = affine.zero.repeat_interleave(each, dim=1)[:, :count].to(torch.uint8)
        # Without them the runtime takes 8.
        self.register_buffer("zeros", None if bool((zeros == 8).all()) else _two_a_byte(pad(zeros, (0, count % 2))))
        self.register_buffer("columns", affine.columns)
        self.width, self.out, self.block = width, out, block

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        x = x if self.columns is None else x * self.columns
        inputs = [x, self.codes, self.scale, *(() if self.zeros is None else (self.zeros,))]
        y = symbolic(
            "com.microsoft::MatMulNBits",
            inputs,
            {"K": self.width, "N": self.out, "bits": NIBBLE, "block_size": self.block},
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.out),
            version=1,
        )
        return self.shifted(y)


class Unfolded(Portable):
    """Codes, scales and zero points in the file; the runtime multiplies them out as it sees fit.

    ONNX Runtime does when it loads the file, and keeps the dense matrix; OpenVINO keeps the codes.
    """

    label = "codes, multiplied out by the runtime"
    codes: Tensor
    scale: Tensor
    zero: Tensor
    columns: Tensor | None

    def __init__(self, affine: Affine, bias: Tensor | None) -> None:
        super().__init__(bias)
        self.shape, self.group, self.bits = affine.shape, affine.group, affine.bits
        out, width = affine.shape
        self.grouped = affine.scale.shape[1] > 1
        # A row that is one group is left as it is, which is the form that OpenVINO multiplies by in whole numbers.
        codes = pad(affine.codes, (0, -width % affine.group)).view(out, -1, affine.group)
        self.numbers("codes", codes if self.grouped else affine.codes)
        self.numbers("scale", affine.scale[..., None] if self.grouped else affine.scale)
        zero = affine.zero.to(torch.uint8)
        self.numbers("zero", zero[..., None] if self.grouped else zero)
        self.register_buffer("columns", affine.columns)

    @property
    def nibbles(self) -> tuple[str, ...]:
        return ("codes", "zero") if self.bits <= NIBBLE else ()

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        out, width = self.shape
        # Each is cast before anything else is done with it: that is all that runtimes can do with halves of bytes.
        matrix = (self.codes.float() - self.zero.float()) * self.scale
        if self.grouped:
            matrix = matrix.reshape(out, -1)[:, :width]
        x = x if self.columns is None else x * self.columns
        return self.shifted(linear(x, matrix))


class Table(Portable):
    """A word embedding of codes, a byte each: looked up first, and only then multiplied out."""

    label = "word embedding of codes, a byte each"
    codes: Tensor
    scale: Tensor
    zero: Tensor
    columns: Tensor | None

    def __init__(self, affine: Affine) -> None:
        super().__init__(None)
        self.group = affine.group
        self.numbers("codes", affine.codes.T)
        self.numbers("scale", affine.scale.T)
        self.numbers("zero", affine.zero.T)
        self.register_buffer("columns", None if affine.columns is None else affine.columns[:, None])

    def forward(self, tokens: Int[Tensor, "..."]) -> Float[Tensor, "... width"]:
        groups = tokens // self.group
        y = (self.codes[tokens].float() - self.zero[groups]) * self.scale[groups]
        return y if self.columns is None else y * self.columns[tokens]


def _two_a_byte(codes: Tensor) -> Tensor:
    """Whole numbers below 16, an even number of them in a row: the first in the lower half of the byte."""
    return codes[..., ::2] | codes[..., 1::2] << NIBBLE
