"""Ŵ = A B with A (out, r) and B (r, in): two thin linears in place of one, or a thin table in place of a wide one."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic.formats.base import (
    EmbeddingFormat,
    Format,
    dense_weight,
    give_bias,
    looked_up,
    refit_weight,
    weight_macs,
    weight_nbytes,
)
from laconic.formats.shared_input import SharedInput
from laconic.numerics.lowrank import output_factor


class LowRank(Format):
    """y = A (B x) + bias. `right` holds B, `left` holds A and the bias.

    shared_by counts the layers that multiply by this B; see `laconic.formats.shared`.
    """

    kind = "low-rank"
    readers = ("right",)

    def __init__(self, out_features: int, in_features: int, rank: int, bias: bool, shared_by: int = 1) -> None:
        super().__init__()
        self.right: nn.Linear | Format = nn.Linear(in_features, rank, bias=False)
        self.left: nn.Linear | Format = nn.Linear(rank, out_features, bias=bias)
        # Kept apart from the factors, which a later step may replace by formats of their own.
        self.out_features, self.in_features, self.rank = out_features, in_features, rank
        self._latent = SharedInput(shared_by)

    @classmethod
    def of(cls, A: Float[Tensor, "out r"], B: Float[Tensor, "r in"], shared_by: int = 1) -> "LowRank":
        """The format of two given factors, without a bias."""
        with torch.device("meta"):
            layer = cls(A.shape[0], B.shape[1], A.shape[1], bias=False, shared_by=shared_by)
        layer.to_empty(device=A.device)
        layer.left.weight = nn.Parameter(A.contiguous())
        layer.right.weight = nn.Parameter(B.contiguous())
        return layer.to(A.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        """B x."""
        return self._latent.of(x, self.right)

    def dense(self) -> Float[Tensor, "out in"]:
        return dense_weight(self.left) @ dense_weight(self.right)

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        refit_weight(self.left, *output_factor(target, dense_weight(self.right).detach(), moment))

    def nbytes(self) -> int:
        return weight_nbytes(self.left) + weight_nbytes(self.right)

    def macs(self) -> int:
        return weight_macs(self.left) + weight_macs(self.right)

    @property
    def bias(self) -> Tensor | None:
        return self.left.bias

    def set_bias(self, bias: Tensor | None) -> None:
        give_bias(self.left, bias)

    def for_lookup(self, padding_idx: int | None) -> Format:
        return LowRankEmbedding.of(self, padding_idx)

    def spec(self) -> dict[str, Any]:
        out_features, in_features = self.shape
        sizes = {"out_features": out_features, "in_features": in_features, "rank": self.rank}
        shared = {"shared_by": self._latent.shared_by} if self._latent.shared_by > 1 else {}
        return {**sizes, "bias": self.bias is not None, **shared}

    @classmethod
    def shell(cls, **spec: Any) -> "LowRank":
        return cls(**spec)


class LowRankEmbedding(EmbeddingFormat):
    """y = A B[:, token]: a table of `rank` numbers a token, then one linear. The matrix is (width, vocabulary)."""

    kind = "low-rank-embedding"
    readers = ("table",)

    def __init__(self, vocabulary: int, width: int, rank: int, padding_idx: int | None) -> None:
        super().__init__()
        self.table: nn.Embedding | Format = nn.Embedding(vocabulary, rank, padding_idx=padding_idx)
        self.left: nn.Linear | Format = nn.Linear(rank, width, bias=False)
        self.vocabulary, self.width, self.rank, self.padding_idx = vocabulary, width, rank, padding_idx

    @classmethod
    def of(cls, linear: LowRank, padding_idx: int | None) -> "LowRankEmbedding":
        """The same factors, looked up by token instead of multiplied by a one-hot row."""
        width, vocabulary = linear.shape
        with torch.device("meta"):
            layer = cls(vocabulary, width, linear.rank, padding_idx)
        layer.to_empty(device=linear.weight.device)
        layer.left = linear.left
        right = linear.right
        if isinstance(right, Format):
            layer.table = right.for_lookup(padding_idx)
        else:
            layer.table.weight = nn.Parameter(right.weight.T.contiguous())
        return layer.to(linear.weight.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return self.width, self.vocabulary

    def forward(self, tokens: Tensor) -> Tensor:
        return self.left(self.table(tokens))

    def dense(self) -> Float[Tensor, "out in"]:
        return dense_weight(self.left) @ looked_up(self.table)

    def nbytes(self) -> int:
        return weight_nbytes(self.left) + weight_nbytes(self.table)

    def macs(self) -> int:
        return weight_macs(self.left)

    def spec(self) -> dict[str, Any]:
        sizes = {"vocabulary": self.vocabulary, "width": self.width, "rank": self.rank}
        return {**sizes, "padding_idx": self.padding_idx}

    @classmethod
    def shell(cls, **spec: Any) -> "LowRankEmbedding":
        return cls(**spec)
