"""Several matrices of one input with one input factor: Ŵ_i = A_i B, of which B is stored and multiplied by once.

Query, key and value read the same tensor, as do the gate and the up projection. The first of them is a `LowRank` that
owns B; the others are `LowRankReader`s, which have an A of their own and take B x from the first.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic.errors import UserError
from laconic.formats.base import Format, dense_weight, give_bias, refit_weight, weight_macs, weight_nbytes
from laconic.formats.lowrank import LowRank
from laconic.numerics.lowrank import output_factor


class LowRankReader(Format):
    """y = A z + bias with z = B x of the `source`, another layer that is called with the same x."""

    kind = "low-rank-reader"
    readers = ()

    def __init__(self, out_features: int, in_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.left = nn.Linear(rank, out_features, bias=bias)
        self.out_features, self.in_features, self.rank = out_features, in_features, rank
        # In a tuple, where torch does not look for parts: B belongs to the source, and is stored there alone.
        self._source: tuple[LowRank, ...] = ()

    @classmethod
    def of(cls, A: Float[Tensor, "out r"], source: LowRank) -> "LowRankReader":
        """A reader of `source`, without a bias."""
        with torch.device("meta"):
            layer = cls(A.shape[0], source.in_features, A.shape[1], bias=False)
        layer.to_empty(device=A.device)
        layer.left.weight = nn.Parameter(A.contiguous())
        layer.read_from(source)
        return layer.to(A.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self._source[0].project(x))

    def dense(self) -> Float[Tensor, "out in"]:
        return dense_weight(self.left) @ dense_weight(self._source[0].right)

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        refit_weight(self.left, *output_factor(target, dense_weight(self._source[0].right).detach(), moment))

    def nbytes(self) -> int:
        return weight_nbytes(self.left)

    def macs(self) -> int:
        return weight_macs(self.left)

    @property
    def bias(self) -> Tensor | None:
        return self.left.bias

    def set_bias(self, bias: Tensor | None) -> None:
        give_bias(self.left, bias)

    @property
    def source(self) -> Format | None:
        return self._source[0] if self._source else None

    def read_from(self, source: Format) -> None:
        if not isinstance(source, LowRank):
            raise UserError(f"A layer of the kind '{self.kind}' reads from a '{LowRank.kind}'; got a '{source.kind}'.")
        self._source = (source,)

    def for_lookup(self, padding_idx: int | None) -> Format:
        raise ValueError("a word embedding shares its input with no other matrix")

    def spec(self) -> dict[str, Any]:
        out_features, in_features = self.shape
        bias = self.bias is not None
        return {"out_features": out_features, "in_features": in_features, "rank": self.rank, "bias": bias}

    @classmethod
    def shell(cls, **spec: Any) -> "LowRankReader":
        return cls(**spec)


def divided(whole: LowRank, rows: tuple[int, ...]) -> tuple[Format, ...]:
    """The format of matrices written one below the other as one format for each; `rows` are their outputs."""
    parts = dense_weight(whole.left).detach().split(rows)
    owner = LowRank.of(parts[0].clone(), dense_weight(whole.right).detach(), shared_by=len(parts))
    return owner, *(LowRankReader.of(part.clone(), owner) for part in parts[1:])
