"""Modules that replace quantized layers while a model is traced for another runtime. They are never run.

ONNX operators that torch does not have are inserted by `torch.onnx.ops.symbolic`, which computes nothing.

Runtimes represent a quantized matrix by integer codes c, with a scale s and a zero point z for each row i and group g
of columns, and optionally a scale k for each column j:

    w_ij = s_ig (c_ij − z_ig) k_j,   g = ⌊j / group⌋

All uniform quantization formats have this form, with any number of bits; int8 has z = 128 and unsigned codes.
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
"""The smallest and largest block of columns in ONNX Runtime's MatMulNBits, which accepts powers of two."""


class AffineCodes(NamedTuple):
    """The unpacked codes of a matrix, one per byte, with their scales and zero points.

    Args:
        codes: c, (out, in) unsigned integers of `bits` bits.
        scale: s, (out, groups).
        zero: z, (out, groups).
        bits: the number of bits of a code.
        group: the number of columns that share a scale. The last group of a row may be narrower.
        columns: k, (in,), the scale of each column; None if all are 1.
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
        """The number of columns in the largest possible block of MatMulNBits; None if the operator is not used.

        It is used for codes of up to 4 bits, for which ONNX Runtime is fast with float32 inputs.
        """
        if self.bits > FOUR_BITS:
            return None
        width = self.group if self.scale.shape[1] > 1 else LARGEST_BLOCK
        powers = (2**power for power in range(SMALLEST_BLOCK.bit_length() - 1, LARGEST_BLOCK.bit_length()))
        # A row that is a single group is padded to a multiple of the block, by less than its width.
        return max((block for block in powers if width % block == 0 and block < 2 * self.shape[1]), default=None)


class Portable(nn.Module):
    """A module that replaces a quantized layer. Its buffers are the tensors of the exported file.

    Args:
        bias: the bias of the layer, or None.
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
        """Register a tensor of the exported file."""
        self.register_buffer(name, None if tensor is None else tensor.contiguous())

    def add_bias(self, y: Float[Tensor, "*rows out"]) -> Float[Tensor, "*rows out"]:
        """`y` plus the bias, if there is one."""
        return y if self.bias is None else y + self.bias

    @property
    def four_bit_names(self) -> tuple[str, ...]:
        """Names of tensors with one 4-bit integer per byte, which are packed to two per byte in the file."""
        return ()

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors in the file, without the bias."""
        sizes = {name: buffer.nbytes for name, buffer in self.named_buffers(recurse=False) if name != "bias"}
        return sum(size // 2 if name in self.four_bit_names else size for name, size in sizes.items())


class MatMulInteger(Portable):
    """ONNX's MatMulInteger on int8 weights, with inputs quantized row by row as in `laconic.formats.int8`.

    Args:
        matrix: the codes, and a scale for each row.
        bias: the bias of the layer, or None.
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
    """ONNX's DequantizeLinear on int8 weights with a scale for each output. OpenVINO computes it as an integer product.

    OpenVINO quantizes inputs in groups of DYNAMIC_QUANTIZATION_GROUP_SIZE, which the file sets.

    Args:
        matrix: the codes, and a scale for each row.
        bias: the bias of the layer, or None.
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
    """ONNX Runtime's operator MatMulNBits on blocks of codes of up to 4 bits. It accumulates in float32.

    Args:
        affine: the codes with their scales.
        block: the number of columns in a block, from `AffineCodes.block`.
        bias: the bias of the layer, or None.
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
        blocks_per_group = max(1, affine.group // block) if affine.scale.shape[1] > 1 else count
        self.store("scale", affine.scale.repeat_interleave(blocks_per_group, dim=1)[:, :count])
        zeros = affine.zero.repeat_interleave(blocks_per_group, dim=1)[:, :count].to(torch.uint8)
        # 8 is the default zero point of the operator.
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
    """Codes, scales and zero points, from which the runtime computes the dense matrix.

    ONNX Runtime computes it when it loads the file, and keeps the dense matrix. OpenVINO keeps the codes.

    Args:
        affine: the codes with their scales.
        bias: the bias of the layer, or None.
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
        # Without an axis for groups, OpenVINO would compute an integer product.
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
        # Cast first: runtimes support no other operator on 4-bit integers.
        matrix = (self.codes.float() - self.zero.float()) * self.scale
        if self.grouped:
            matrix = matrix.reshape(out, -1)[:, :width]
        x = x if self.columns is None else x * self.columns
        return self.add_bias(linear(x, matrix))


class CodedLookup(Portable):
    """A quantized word embedding with one code per byte: codes of rows are looked up and then dequantized.

    Args:
        affine: the codes of the (width, tokens) matrix, with their scales.
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
    """Pack two 4-bit integers per byte along the last axis, the first in the lower half. Its length must be even."""
    return codes[..., ::2] | codes[..., 1::2] << FOUR_BITS
