"""One tensor as the bytes of a GGUF file: 16 or 32 bits a number, or blocks of codes.

The levels q = c − z of a layer on an evenly spaced grid are integers. If a type of blocks of llama.cpp has these
integers and its groups lie inside those of the layer, the layer is written as such blocks, and the numbers stay the
same bit for bit. Other layers are decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from laconic.formats import Format, GgmlBlocks, PackedCodes, PackedEmbedding
from laconic.numerics.ggml_blocks import BLOCK_TYPES, BlockNumbers, pack_blocks
from laconic.runtime.portable import affine_codes
from laconic.runtime.portable_layers import AffineCodes

FLOATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
"""The names of floating-point types in llama.cpp."""
TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
"""The types of blocks that other layers are written as: with evenly spaced levels and one scale, from the smallest."""
COLUMNS = 32
"""The columns of their blocks."""


@dataclass(frozen=True)
class Encoded:
    """A tensor as it is written.

    Args:
        data: its bytes (…, out, bytes of a row).
        kind: the type of its numbers in llama.cpp, in lower case.
        columns: numbers in a row.
        stored_bytes: bytes of the matrix as laconic stores it; None if it is not compressed.
    """

    data: UInt8[Tensor, "*rows bytes"]
    kind: str
    columns: int
    stored_bytes: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in numbers."""
        return (*self.data.shape[:-1], self.columns)

    def take(self, rows: Int[Tensor, " rows"]) -> "Encoded":
        """The same tensor with these rows, or elements of a vector, in this order."""
        if self.data.dim() > 1:
            return replace(self, data=self.data[..., rows, :])
        return replace(self, data=self.data.view(self.columns, -1)[rows].reshape(-1))


@dataclass(frozen=True)
class Encoder:
    """The conversion of tensors to the types of numbers in a GGUF file.

    Args:
        dtype: the dtype of plain numbers.
        blocks: write compressed layers as blocks where these hold their numbers exactly.
    """

    dtype: torch.dtype
    blocks: bool = True

    def floats(self, values: Float[Tensor, "..."]) -> Encoded:
        """A tensor of plain numbers. Vectors are float32, as llama.cpp adds and multiplies them in it.

        Example:
            >>> encoder = Encoder(torch.bfloat16)
            >>> encoder.floats(torch.zeros(3, 4)).shape, encoder.floats(torch.zeros(4)).kind
            ((3, 4), 'f32')
        """
        dtype = torch.float32 if values.dim() == 1 else self.dtype
        data = values.detach().cpu().to(dtype).contiguous().view(torch.uint8)
        return Encoded(data, FLOATS[dtype], values.shape[-1])

    def layer(self, layer: Format) -> Encoded:
        """The matrix of a compressed layer or word embedding: blocks if they hold its numbers, decoded otherwise."""
        if isinstance(layer, PackedEmbedding) and layer.by_rows:
            return self.layer(layer.coded)
        if layer.is_embedding:
            return replace(self.floats(layer.dense().T), stored_bytes=layer.nbytes())
        if isinstance(layer, GgmlBlocks) and self.blocks:
            return Encoded(layer.row_bytes.cpu(), layer.blocks.name, layer.in_features, layer.nbytes())
        codes = affine_codes(layer) if self.blocks and isinstance(layer, PackedCodes) else None
        blocks = None if codes is None else as_blocks(codes)
        return replace(self.floats(layer.dense()) if blocks is None else blocks, stored_bytes=layer.nbytes())

    def module(self, module: nn.Module) -> Encoded:
        """The matrix of a compressed layer or of a plain linear."""
        return self.layer(module) if isinstance(module, Format) else self.floats(module.get_parameter("weight"))


def is_exact(layer: Format) -> bool:
    """Whether blocks of llama.cpp hold the numbers of a compressed layer."""
    return Encoder(torch.float32).layer(layer).kind in BLOCK_TYPES


def stack(parts: Sequence[Encoded]) -> Encoded:
    """The matrices of all experts as one tensor."""
    kinds = {part.kind for part in parts}
    assert len(kinds) == 1, "the experts of a stack are compressed together"
    stored = [part.stored_bytes for part in parts if part.stored_bytes is not None]
    return replace(
        parts[0], data=torch.stack([part.data for part in parts]), stored_bytes=sum(stored) if stored else None
    )


def as_blocks(codes: AffineCodes) -> Encoded | None:
    """Blocks with exactly these numbers; None if no type has them."""
    width = codes.shape[1]
    if codes.columns is not None or width % COLUMNS or (codes.scale.shape[1] > 1 and codes.group % COLUMNS):
        return None
    per_group, blocks = max(1, codes.group // COLUMNS), width // COLUMNS
    scale, zero = (part.cpu().repeat_interleave(per_group, 1)[:, :blocks] for part in (codes.scale, codes.zero))
    own = codes.codes.cpu()
    levels = own.to(torch.int16) - zero.repeat_interleave(COLUMNS, 1).to(torch.int16)
    d, m = scale.half(), (-scale * zero).half()
    if not torch.equal(d.float(), scale):
        return None
    for kind in map(BLOCK_TYPES.__getitem__, TYPES):
        if kind.has_minimum and codes.bits <= kind.bits and torch.equal(m.float(), -scale * zero):
            numbers = BlockNumbers(own, d, m, None, None)
        elif not kind.has_minimum and levels.min() >= -kind.offset and levels.max() < 2**kind.bits - kind.offset:
            numbers = BlockNumbers((levels + kind.offset).to(torch.uint8), d, None, None, None)
        else:
            continue
        return Encoded(pack_blocks(numbers, kind), kind.name, width)
    return None
