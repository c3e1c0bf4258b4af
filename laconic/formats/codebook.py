"""Quantization by tables: each code is the index of a value in the table of its group of weights."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor, nn

from laconic.formats.base import byte_parameter, empty_bytes
from laconic.formats.packed import PackedCodes
from laconic.numerics.packing import as_bytes, from_bytes
from laconic.numerics.scaling import TiedWeights


class Codebook(PackedCodes):
    """y = Ŵ x + bias with ŵ = table[code].

    Stored, in addition to the tensors of `PackedCodes`: `tables`, 2^bits values of 16 bits for each group of weights.

    Args:
        shape: (out, in).
        bits: bits of a code, 2 to 8.
        group: columns of a row that share a table; None if the whole matrix shares one.
        kept: number of nonzero weights; None if nothing was pruned.
        bias: whether there is a bias.

    Example:
        >>> tables, codes = torch.tensor([[[0.0, 1.0, 5.0, 9.0]]]), torch.tensor([[3, 0], [1, 2]], dtype=torch.uint8)
        >>> layer = Codebook.from_codes(codes, tables, group=None)
        >>> layer.dense().tolist(), layer.nbytes()  # one byte of codes, and four values of two bytes
        ([[9.0, 0.0], [1.0, 5.0]], 9)
    """

    kind = "codebook"
    tables: nn.Parameter

    def __init__(
        self, shape: tuple[int, int], bits: int, group: int | None, kept: int | None = None, bias: bool = False
    ) -> None:
        super().__init__(shape, bits, kept, bias)
        self.group = group
        self.tables = empty_bytes(tables_nbytes(shape, bits, group))

    @classmethod
    def from_codes(
        cls,
        codes: Integer[Tensor, "out in"],
        tables: Float[Tensor, "rows groups values"],
        group: int | None,
        dtype: torch.dtype = torch.float32,
        mask: Bool[Tensor, "out in"] | None = None,
    ) -> "Codebook":
        """The format of a matrix of codes, without a bias.

        Args:
            codes: the code of every weight.
            tables: 2^bits values for each group of each row, or (1, 1, 2^bits) where `group` is None; stored in 16
                bits.
            group: columns of a row that share a table; None if the whole matrix shares one.
            dtype: dtype of `dense()`.
            mask: True where a weight is kept; the others are zero, whichever code they have. None keeps all.
        """
        kept = None if mask is None else int(mask.count_nonzero())
        bits = tables.shape[-1].bit_length() - 1
        layer = cls.uninitialized(codes.device, (codes.shape[0], codes.shape[1]), bits, group, kept)
        layer.encode(codes, mask)
        layer.tables = byte_parameter(as_bytes(tables))
        return layer.to(dtype)

    @property
    def groups(self) -> int:
        """Tables of each row."""
        return 1 if self.group is None else -(-self.in_features // self.group)

    def decode(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Float[Tensor, "rows columns"]:
        values = from_bytes(self.tables.detach())
        return values.index_select(0, self._places(codes, columns).view(-1)).view(codes.shape)

    def _places(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Tensor:
        """The index of each code's value among the values of all tables."""
        places = codes.int()
        if self.group is not None:
            column_indices = torch.arange(codes.shape[1], device=codes.device) if columns is None else columns
            rows = torch.arange(self.out_features, dtype=torch.int32, device=codes.device)[:, None]
            places.add_((rows * self.groups + (column_indices // self.group).int()) * 2**self.bits)
        return places

    @property
    def shared_values(self) -> nn.Parameter:
        return self.tables

    def tied_weights(self, codes: Integer[Tensor, "out in"]) -> TiedWeights:
        return TiedWeights(self._places(codes, None), torch.ones(self.shape, device=codes.device))

    def nearest_codes(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        values = from_bytes(self.tables.detach()).view(-1, self.groups, 2**self.bits)
        best, codes = (
            torch.full_like(weight, torch.inf, dtype=torch.float32),
            torch.zeros_like(weight, dtype=torch.uint8),
        )
        column_indices = torch.arange(self.in_features, device=weight.device) // (self.group or self.in_features)
        for code in range(2**self.bits):
            error = (values[:, column_indices, code] - weight).abs()
            codes = torch.where(error < best, code, codes)
            best = torch.minimum(error, best)
        return codes

    def spec(self) -> dict[str, Any]:
        return {**self.coded_spec(), "group": self.group}


def tables_nbytes(shape: tuple[int, int], bits: int, group: int | None) -> int:
    """Bytes of the tables of a matrix of `shape` (out, in).

    Example:
        >>> tables_nbytes((4, 8), bits=3, group=8)
        64
    """
    tables = 1 if group is None else shape[0] * -(-shape[1] // group)
    return 2 * tables * 2**bits
