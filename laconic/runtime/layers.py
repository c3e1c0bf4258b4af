"""Modules that stand for quantized layers while a model is traced for another runtime; they are never run.

ONNX operators that torch lacks are put into the graph by `torch.onnx.ops.symbolic`, which computes nothing.

Runtimes read the codes of a matrix as integers, with a scale and a zero point for each group of columns:

    w_ij = s_ig (c_ij − z_ig) k_j,   g = ⌊j / group⌋

All formats of evenly spaced codes can be written so, whatever their bits; int8 has z = 128 with codes counted from 0.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from torch.onnx.ops import symbolic

from laconic.formats.int8 import FULL, Int8Matrix

FOUR_BITS = 4
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
"""Columns of a block in ONNX Runtime's MatMulNBits; it takes powers of two between these."""


class AffineCodes(NamedTuple):
    """The unpacked codes of a matrix, one a byte, with their scales and zero points.

    Args:
        codes: c, unsigned integers of `bits` bits.
        scale: s, one for each row and group.
        zero: z, one for each row and group.
        bits: of a code.
        group: columns that share a scale; the last group of a row may be narrower.
        columns: k; None where all are 1.
    """

    codes: UInt8[Tensor, "out in"]
    scale: Float[Tensor, "out groups"]
    zero: Float[Tensor, "out groups"]
    bits: int
    group: int
    columns: Float[Tensor, " in"] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def block(self) -> int | None:
        """Columns of the largest block of MatMulNBits that fits; None where the operator is not for such codes.

        ONNX Runtime is fast with float32 inputs for codes of up to 4 bits.
        """
        if self.bits > FOUR_BITS:
            return None
        width = self.group if self.scale.shape[1] > 1 else LARGEST_BLOCK
        powers = (2**power for power in range(SMALLEST_BLOCK.bit_length() - 1, LARGEST_BLOCK.bit_length()))
        # A row of one group is padded to a whole number of blocks, by less than its own width.
        return max((block for block in powers if width % block == 0 and block < 2 * self.shape[1]), default=None)


class Portable(nn.Module):
    """A stand-in for a quantized layer. Its tensors are those of the exported file.

    Args:
        bias: of the layer, or None.
    """

    label: ClassVar[str]
    """Its description in reports."""
    weight: Tensor

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        # T5 reads the dtype of `weight`.
        self.register_buffer("weight", torch.empty(0))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.bias: Tensor | None

    def store(self, name: str, tensor: Tensor | None) -> None:
        """Register a tensor of the file."""
        self.register_buffer(name, None if tensor is None else tensor.contiguous())

    def add_bias(self, y: Float[Tensor, "*rows out"]) -> Float[Tensor, "*rows out"]:
        """`y` plus the bias, if there is one."""
        return y if self.bias is None else y + self.bias

    @property
    def four_bit_names(self) -> tuple[str, ...]:
        """Names of tensors that hold one 4-bit integer a byte, and are written with two a byte."""
        return ()

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors in the file, without the bias."""
        sizes = {name: buffer.nbytes for name, buffer in self.named_buffers(recurse=False) if name != "bias"}
        return sum(size // 2 if name in self.four_bit_names else size for name, size in sizes.items())


class MatMulInteger(Portable):
    """ONNX's MatMulInteger on int8 weights and inputs that are rounded row by row, as in `laconic.formats.int8`.

    Args:
        matrix: the codes and the scales of the rows.
        bias: of the layer, or None.
    """

    label = "int8, inputs rounded row by row"
    codes: Tensor
    scale: Tensor
    sums: Tensor

    def __init__(self, matrix: Int8Matrix, bias: Tensor | None) -> None:
        super().__init__(bias)
        self.store("codes", matrix.codes.T)
        self.store("scale", matrix.scale)
        self.store("sums", matrix.scale * matrix.codes.long().sum(1))

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        step = (high - low) / FULL
        inverse = torch.where(step > 0, 1 / step, 0.0)
        q = ((x - low) * inverse).round().to(torch.uint8)
        shape = (*x.shape[:-1], len(self.scale))
        sums = symbolic("MatMulInteger", (q, self.codes), dtype=torch.int32, shape=shape)
        return self.add_bias(sums.float() * self.scale * step + low * self.sums)


class DequantizeLinear(Portable):
    """ONNX's DequantizeLinear on int8 weights with a scale for each output; OpenVINO makes it an integer product.

    OpenVINO rounds inputs in groups of DYNAMIC_QUANTIZATION_GROUP_SIZE.

    Args:
        matrix: the codes and the scales of the rows.
        bias: of the layer, or None.
    """

    label = "int8, inputs rounded in groups"
    codes: Tensor
    scale: Tensor

    def __init__(self, matrix: Int8Matrix, bias: Tensor | None) -> None:
        super().__init__(bias)
        self.store("codes", matrix.codes)
        self.store("scale", matrix.scale)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        inputs, shape = (self.codes, self.scale), self.codes.shape
        matrix = symbolic("DequantizeLinear", inputs, {"axis": 0}, dtype=torch.float32, shape=shape)
        return self.add_bias(linear(x, matrix))


class MatMulNBits(Portable):
    """ONNX Runtime's own MatMulNBits on blocks of codes of up to 4 bits; it sums in float32.

    Args:
        affine: the codes with their scales.
        block: columns of a block, as `AffineCodes.block` gives them.
        bias: of the layer, or None.
    """

    label = "4-bit blocks"
    codes: Tensor
    scale: Tensor
    zeros: Tensor | None
    columns: Tensor | None

    def __init__(self, affine: AffineCodes, block: int, bias: Tensor | None) -> None:
        super().__init__(bias)
        out, width = affine.shape
        count = -(-width // block)
        codes = pad(affine.codes, (0, count * block - width)).view(out, count, block)
        self.store("codes", _pack_pairs(codes))
        each = max(1, affine.group // block) if affine.scale.shape[1] > 1 else count
        self.store("scale", affine.scale.repeat_interleave(each, dim=1)[:, :count])
        zeros = affine.zero.repeat_interleave(each, dim=1)[:, :count].to(torch.uint8)
        # 8 is the default.
        self.store("zeros", None if bool((zeros == 8).all()) else _pack_pairs(pad(zeros, (0, count % 2))))
        self.store("columns", affine.columns)
        self.width, self.out, self.block = width, out, block

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        x = x if self.columns is None else x * self.columns
        inputs = [x, self.codes, self.scale, *(() if self.zeros is None else (self.zeros,))]
        y = symbolic(
            "com.microsoft::MatMulNBits",
            inputs,
            {"K": self.width, "N": self.out, "bits": FOUR_BITS, "block_size": self.block},
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.out),
            version=1,
        )
        return self.add_bias(y)


class Dequantized(Portable):
    """Codes, scales and zero points, from which the runtime computes the matrix.

    ONNX Runtime computes it when it loads the file, and keeps the dense matrix; OpenVINO keeps the codes.

    Args:
        affine: the codes with their scales.
        bias: of the layer, or None.
    """

    label = "codes, multiplied out by the runtime"
    codes: Tensor
    scale: Tensor
    zero: Tensor
    columns: Tensor | None

    def __init__(self, affine: AffineCodes, bias: Tensor | None) -> None:
        super().__init__(bias)
        self.shape, self.group, self.bits = affine.shape, affine.group, affine.bits
        out, width = affine.shape
        self.grouped = affine.scale.shape[1] > 1
        # OpenVINO makes integer products of matrices without a group axis.
        codes = pad(affine.codes, (0, -width % affine.group)).view(out, -1, affine.group)
        self.store("codes", codes if self.grouped else affine.codes)
        self.store("scale", affine.scale[..., None] if self.grouped else affine.scale)
        zero = affine.zero.to(torch.uint8)
        self.store("zero", zero[..., None] if self.grouped else zero)
        self.store("columns", affine.columns)

    @property
    def four_bit_names(self) -> tuple[str, ...]:
        return ("codes", "zero") if self.bits <= FOUR_BITS else ()

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        out, width = self.shape
        # Casts come first: runtimes have no other operator for 4-bit integers.
        matrix = (self.codes.float() - self.zero.float()) * self.scale
        if self.grouped:
            matrix = matrix.reshape(out, -1)[:, :width]
        x = x if self.columns is None else x * self.columns
        return self.add_bias(linear(x, matrix))


class CodedLookup(Portable):
    """A word embedding of codes, one a byte: rows are looked up and then multiplied out.

    Args:
        affine: the codes with their scales, of the matrix (width, tokens).
    """

    label = "word embedding of codes, a byte each"
    codes: Tensor
    scale: Tensor
    zero: Tensor
    columns: Tensor | None

    def __init__(self, affine: AffineCodes) -> None:
        super().__init__(None)
        self.group = affine.group
        self.store("codes", affine.codes.T)
        self.store("scale", affine.scale.T)
        self.store("zero", affine.zero.T)
        self.store("columns", None if affine.columns is None else affine.columns[:, None])

    def forward(self, tokens: Int[Tensor, "..."]) -> Float[Tensor, "... width"]:
        groups = tokens // self.group
        y = (self.codes[tokens].float() - self.zero[groups]) * self.scale[groups]
        return y if self.columns is None else y * self.columns[tokens]


def _pack_pairs(codes: Tensor) -> Tensor:
    """Two 4-bit integers a byte, the first in the lower half; the last axis has an even number of them."""
    return codes[..., ::2] | codes[..., 1::2] << FOUR_BITS
