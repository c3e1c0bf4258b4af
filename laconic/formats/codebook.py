"""Ŵ by tables: codes of 2 to 8 bits, each the place of a value in the table of its group of weights."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor, nn

from laconic.formats.packed import Coded, as_bytes, from_bytes, frozen, stored
from laconic.numerics.tied import Sharing


class Codebook(Coded):
    """w = T[c]. A table has 2^bits values of 16 bits each.

    group: columns of a row that share a table; None where the whole matrix does.
    """

    kind = "codebook"
    tables: nn.Parameter

    def __init__(
        self, shape: tuple[int, int], bits: int, group: int | None, kept: int | None = None, bias: bool = False
    ) -> None:
        super().__init__(shape, bits, kept, bias)
        self.group = group
        self.tables = stored(tables_nbytes(shape, bits, group))

    @classmethod
    def of(
        cls,
        codes: Integer[Tensor, "out in"],
        tables: Float[Tensor, "rows groups values"],
        group: int | None,
        dtype: torch.dtype = torch.float32,
        mask: Bool[Tensor, "out in"] | None = None,
    ) -> "Codebook":
        """The format of the codes of a matrix, without a bias.

        tables: 2^bits values for each group of each row, or (1, 1, 2^bits) where `group` is None; stored in 16 bits.
        dtype:  that of `dense()`.
        mask:   True where a weight is kept; the others are zero whatever their code is.
        """
        kept = None if mask is None else int(mask.count_nonzero())
        bits = tables.shape[-1].bit_length() - 1
        with torch.device("meta"):
            layer = cls((codes.shape[0], codes.shape[1]), bits, group, kept)
        layer.to_empty(device=codes.device)
        layer.encode(codes, mask)
        layer.tables = frozen(as_bytes(tables))
        return layer.to(dtype)

    @property
    def groups(self) -> int:
        """Tables of each row."""
        return 1 if self.group is None else -(-self.in_features // self.group)

    def decoded(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Float[Tensor, "rows columns"]:
        values = from_bytes(self.tables.detach())
        return values.index_select(0, self._places(codes, columns).view(-1)).view(codes.shape)

    def _places(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Tensor:
        """Of each code's value among those of all tables."""
        places = codes.int()
        if self.group is not None:
            which = torch.arange(codes.shape[1], device=codes.device) if columns is None else columns
            rows = torch.arange(self.out_features, dtype=torch.int32, device=codes.device)[:, None]
            places.add_((rows * self.groups + (which // self.group).int()) * 2**self.bits)
        return places

    @property
    def numbers(self) -> nn.Parameter:
        return self.tables

    def sharing(self, codes: Integer[Tensor, "out in"]) -> Sharing:
        return Sharing(self._places(codes, None), torch.ones(self.shape, device=codes.device))

    def codes_for(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        values = from_bytes(self.tables.detach()).view(-1, self.groups, 2**self.bits)
        best, codes = (
            torch.full_like(weight, torch.inf, dtype=torch.float32),
            torch.zeros_like(weight, dtype=torch.uint8),
        )
        which = torch.arange(self.in_features, device=weight.device) // (self.group or self.in_features)
        for code in range(2**self.bits):
            error = (values[:, which, code] - weight).abs()
            codes = torch.where(error < best, code, codes)
            best = torch.minimum(error, best)
        return codes

    def spec(self) -> dict[str, Any]:
        return {**self.coded_spec(), "group": self.group}

    @classmethod
    def shell(cls, **spec: Any) -> "Codebook":
        return cls((spec.pop("out_features"), spec.pop("in_features")), **spec)


def tables_nbytes(shape: tuple[int, int], bits: int, group: int | None) -> int:
    """Bytes of the tables of a matrix of `shape`."""
    tables = 1 if group is None else shape[0] * -(-shape[1] // group)
    return 2 * tables * 2**bits
