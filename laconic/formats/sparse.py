"""Pruned linears and word embeddings: dense in memory, a mask and the kept values on disk."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from laconic.formats.base import EmbeddingFormat, Format, copy_bias
from laconic.formats.masked import Masked, exact_pattern


class Sparse(Masked):
    """y = (Ŵ ∘ M) x + bias. `linear` is a plain linear whose weight has the zeros.

    Stored: see `Masked`; the bias in the dtype of the model.

    Args:
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        kept: number of kept weights.
        bias: whether there is a bias.
        pattern: (N, M) where exactly N of every M consecutive inputs are kept, else None.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> layer = Sparse.from_dense(weight, weight > 2)
        >>> layer.nbytes()  # two values of 4 bytes and a mask of one
        9
        >>> layer(torch.ones(4)).tolist(), list(layer.state_dict())
        ([7.0], ['weight', 'values', 'bits'])
    """

    kind = "sparse"
    child = "linear"
    matrix_parameter = "linear.weight"

    def __init__(
        self, out_features: int, in_features: int, kept: int, bias: bool, pattern: Sequence[int] | None = None
    ) -> None:
        super().__init__((out_features, in_features), kept, pattern)
        # The linear is created with its weight; until then this module holds the bias under the same name.
        self.linear: nn.Module = nn.Module()
        self.linear.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)

    @classmethod
    def from_dense(
        cls, weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], pattern: tuple[int, int] | None = None
    ) -> "Sparse":
        """The format of a matrix, without a bias.

        Args:
            weight: the matrix.
            mask: True where a weight is kept.
            pattern: (N, M) if the mask should keep N of every M inputs; stored only if the mask does so everywhere.
        """
        mask = mask.to(weight.device)
        return cls._from_plain(weight, mask, exact_pattern(mask, pattern), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.masked_weight()
        return self.linear(x) if weight is None else linear(x, weight, self.bias)

    def set_plain_weight(self, weight: nn.Parameter) -> None:
        bias = self.bias
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, bias=False)
        plain.weight = weight
        plain.register_parameter("bias", bias)
        self.linear = plain.train(self.training)

    def orient(self, weight: Tensor) -> Tensor:
        return weight

    def macs(self) -> int:
        # A dense product includes the zeros.
        return self.out_features * self.in_features

    @property
    def bias(self) -> nn.Parameter | None:
        return dict(self.linear.named_parameters(recurse=False)).get("bias")

    def set_bias(self, bias: Tensor | None) -> None:
        self.linear.register_parameter("bias", copy_bias(bias))

    def to_embedding(self, padding_idx: int | None) -> Format:
        assert self.mask is not None, "a packed layer must be unpacked first"
        return SparseEmbedding._from_plain(self.dense(), self.mask, self.pattern, self.kept, padding_idx=padding_idx)

    def spec(self) -> dict[str, Any]:
        return {**self.masked_spec(), "bias": self.bias is not None}


class SparseEmbedding(EmbeddingFormat, Masked):
    """y = (Ŵ ∘ M)[:, token]. `table` is a plain embedding whose weight (vocabulary, width) has the zeros.

    Stored: see `Masked`. The matrix is (width, vocabulary).

    Args:
        out_features: width of an embedding.
        in_features: size of the vocabulary.
        kept: number of kept weights.
        padding_idx: the padding token, whose row gets no gradient.
        pattern: (N, M) where exactly N of every M consecutive inputs are kept, else None.

    Example:
        >>> table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # (width, vocabulary)
        >>> Sparse.from_dense(table, table > 1).to_embedding(padding_idx=None)(torch.tensor([0])).tolist()
        [[0.0, 3.0]]
    """

    kind = "sparse-embedding"
    child = "table"
    matrix_parameter = "table.weight"

    def __init__(
        self,
        out_features: int,
        in_features: int,
        kept: int,
        padding_idx: int | None,
        pattern: Sequence[int] | None = None,
    ) -> None:
        super().__init__((out_features, in_features), kept, pattern)
        self.padding_idx = padding_idx

    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.masked_weight()
        return self.table(tokens) if weight is None else embedding(tokens, weight, self.padding_idx)

    def set_plain_weight(self, weight: nn.Parameter) -> None:
        with torch.device("meta"):
            table = nn.Embedding(self.in_features, self.out_features, self.padding_idx)
        table.weight = weight
        self.table = table.train(self.training)

    def orient(self, weight: Tensor) -> Tensor:
        return weight.T

    def macs(self) -> int:
        return 0

    def spec(self) -> dict[str, Any]:
        return {**self.masked_spec(), "padding_idx": self.padding_idx}
