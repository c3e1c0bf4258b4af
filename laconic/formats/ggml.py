"""Quantization in the blocks of llama.cpp, stored as the very bytes that a GGUF file holds."""

from typing import Any

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from laconic.formats.base import Format, byte_parameter, empty_bytes
from laconic.formats.packed import PackedCodes, PackedEmbedding
from laconic.numerics.ggml_blocks import (
    BLOCK_TYPES,
    BlockNumbers,
    BlockScales,
    decode_blocks,
    decode_numbers,
    group_scales,
    pack_blocks,
    unpack_blocks,
)
from laconic.numerics.ggml_fit import BlockGrid
from laconic.numerics.grid import quantize
from laconic.numerics.grid_search import LARGEST_SCALE
from laconic.numerics.packing import as_bytes
from laconic.numerics.scaling import TiedWeights, grid_indices, refit_tied


class GgmlBlocks(PackedCodes):
    """y = Ŵ x + bias, with Ŵ in blocks of llama.cpp.

    Stored: `codes`, the bytes of all rows, scales included (`laconic.numerics.ggml_blocks`). Its dense matrix in fp32
    is that of llama.cpp, bit for bit. Every weight is stored; pruned ones cannot be left out.

    Args:
        shape: (out, in); the columns fill whole blocks.
        blocks: the type of the blocks, such as `q4_k`.
        bias: whether there is a bias.

    Example:
        >>> scales = BlockScales(torch.tensor([[0.5]]).half(), None, None, None)
        >>> layer = GgmlBlocks.from_codes(torch.arange(32)[None] % 16, scales, "q4_0")
        >>> layer.dense()[0, :4].tolist(), layer.nbytes()  # two bytes of the scale, and half a byte for each code
        ([-4.0, -3.5, -3.0, -2.5], 18)
    """

    kind = "ggml-blocks"

    def __init__(self, shape: tuple[int, int], blocks: str, bias: bool = False) -> None:
        super().__init__(shape, BLOCK_TYPES[blocks].bits, None, bias)
        self.blocks = BLOCK_TYPES[blocks]
        self.codes = empty_bytes(shape[0] * self.blocks.row_nbytes(shape[1]))

    @classmethod
    def from_codes(
        cls,
        codes: Integer[Tensor, "out in"],
        scales: BlockScales,
        blocks: str,
        dtype: torch.dtype = torch.float32,
    ) -> "GgmlBlocks":
        """The format of a matrix of codes, without a bias.

        Args:
            codes: the code of every weight.
            scales: the scales of the blocks.
            blocks: the type of the blocks.
            dtype: dtype of `dense()`.
        """
        layer = cls.uninitialized(codes.device, (codes.shape[0], codes.shape[1]), blocks)
        layer._store(scales.with_codes(codes))
        return layer.to(dtype)

    @property
    def row_bytes(self) -> UInt8[Tensor, "out bytes"]:
        """The bytes of each row, as a GGUF file holds them."""
        return self.codes.detach().view(self.out_features, -1)

    @property
    def numbers(self) -> BlockNumbers:
        """The codes and scales, unpacked."""
        return unpack_blocks(self.row_bytes, self.blocks)

    def _store(self, numbers: BlockNumbers) -> None:
        self.codes = byte_parameter(pack_blocks(numbers, self.blocks).view(-1))

    def decode(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Float[Tensor, "rows columns"]:
        if columns is not None:
            raise ValueError("blocks are decoded as a whole")
        return decode_numbers(self.numbers.block_scales.with_codes(codes), self.blocks)

    def decode_columns(self, which: Integer[Tensor, " k"]) -> Float[Tensor, "out k"]:
        return self.dense()[:, which]

    def decode_rows(self, which: Integer[Tensor, " k"]) -> Float[Tensor, "k in"]:
        return decode_blocks(self.row_bytes[which], self.blocks).to(self.weight.dtype)

    def nearest_codes(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        return quantize(weight, BlockGrid(self.blocks, self.numbers.block_scales).affine)

    def unpack_codes(self) -> Integer[Tensor, "out in"]:
        return self.numbers.codes

    def encode(self, codes: Integer[Tensor, "out in"], mask: Tensor | None) -> None:
        assert mask is None, "blocks store every weight"
        self._store(self.numbers.block_scales.with_codes(codes))

    @property
    def shared_values(self) -> torch.nn.Parameter:
        """The scale d of each block, as bytes; a copy, as they are stored among the codes."""
        return byte_parameter(as_bytes(self.numbers.d.float()))

    def tied_weights(self, codes: Integer[Tensor, "out in"]) -> TiedWeights:
        """Each weight plus its minimum as a factor of its block's d."""
        ones = self.numbers.block_scales
        ones = ones._replace(d=torch.ones_like(ones.d), m=None if ones.m is None else torch.zeros_like(ones.m))
        return TiedWeights(
            grid_indices(self.shape, self.blocks.columns, codes.device),
            decode_numbers(ones.with_codes(codes), self.blocks),
        )

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        """Fit the scale d of each block; codes, minima and the integer scales of groups stay."""
        numbers = self.numbers
        minimum = group_scales(numbers.block_scales)[1]
        if minimum is not None:
            target = target + minimum.repeat_interleave(self.blocks.group, 1)
        with torch.no_grad():
            d = refit_tied(target, self.tied_weights(numbers.codes), numbers.d.float().view(-1), moment)
            d = d.clamp(-LARGEST_SCALE, LARGEST_SCALE).view(numbers.d.shape)
            self.codes.copy_(pack_blocks(numbers._replace(d=d.half()), self.blocks).view(-1))

    def to_embedding(self, padding_idx: int | None) -> Format:
        """The same blocks as a word embedding; their rows are tokens, as in a file of llama.cpp.

        Args:
            padding_idx: the padding token; None for none.
        """
        return PackedEmbedding.from_codes(self, padding_idx, by_rows=True)

    def spec(self) -> dict[str, Any]:
        return {**self._sizes, "blocks": self.blocks.name, "bias": self.bias is not None}
