"""Low-rank formats: Ŵ = A B with A (out, r) and B (r, in), two thin linears, or a thin table and a linear.

Query, key and value read the same tensor, as do the gate and the up projection. Their matrices can share one right
factor: Ŵ_i = A_i B. The first of them is then a `LowRank` that owns B; the others are `LowRankReader`s, which have an A
of their own and take B x from the first.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic.errors import UserError
from laconic.formats.base import (
    EmbeddingFormat,
    Format,
    dense_weight,
    embedding_weight,
    refit_weight,
    set_bias,
    weight_macs,
    weight_nbytes,
)
from laconic.numerics.lowrank import solve_output_factor


class SharedProduct:
    """f(x) for several layers that are called with the same tensor in turn.

    The first layer computes the product; after the last one it is released.

    Args:
        shared_by: the number of layers.

    Example:
        >>> product, x = SharedProduct(shared_by=2), torch.ones(1)
        >>> product.compute(x, torch.neg) is product.compute(x, torch.neg)
        True
    """

    def __init__(self, shared_by: int) -> None:
        self.shared_by = shared_by
        # (x, its version and whether gradients were enabled, f(x), the number of layers that have not called yet)
        self._latest: tuple[Tensor, tuple[int, bool], Tensor, int] | None = None

    def __deepcopy__(self, memo: object) -> "SharedProduct":
        # The stored product belongs to one call of one model.
        return SharedProduct(self.shared_by)

    def compute(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """f(x), computed unless the latest call had the same tensor."""
        if self.shared_by == 1 or torch.compiler.is_compiling():
            # A compiler merges equal products.
            return f(x)
        latest = self._latest
        # A tensor that was changed in place is another input; inference tensors have no version counter.
        state = (0 if x.is_inference() else x._version, torch.is_grad_enabled())
        if latest is not None and latest[0] is x and latest[1] == state:
            _, _, z, left = latest
        else:
            z, left = f(x), self.shared_by
        self._latest = (x, state, z, left - 1) if left > 1 else None
        return z


class LowRank(Format):
    """y = A (B x) + bias.

    Stored: `right` is B (r, in), `left` is A (out, r) and the bias; r · (out + in) numbers in the dtype of the model.

    Args:
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        rank: r.
        bias: whether there is a bias.
        shared_by: how many layers multiply by this B; see `LowRankReader`.

    Example:
        >>> layer = LowRank.from_factors(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0, 3.0]]))
        >>> layer.dense()
        tensor([[1., 0., 3.],
                [2., 0., 6.]], grad_fn=<MmBackward0>)
    """

    kind = "low-rank"
    input_modules = ("right",)

    def __init__(self, out_features: int, in_features: int, rank: int, bias: bool, shared_by: int = 1) -> None:
        super().__init__()
        self.right: nn.Linear | Format = nn.Linear(in_features, rank, bias=False)
        self.left: nn.Linear | Format = nn.Linear(rank, out_features, bias=bias)
        # These numbers stay if a later step replaces the factors by formats.
        self.out_features, self.in_features, self.rank = out_features, in_features, rank
        self._product = SharedProduct(shared_by)

    @classmethod
    def from_factors(cls, A: Float[Tensor, "out r"], B: Float[Tensor, "r in"], shared_by: int = 1) -> "LowRank":
        """The format of two factors, without a bias."""
        layer = cls.uninitialized(A.device, A.shape[0], B.shape[1], A.shape[1], bias=False, shared_by=shared_by)
        layer.left.weight = nn.Parameter(A.contiguous())
        layer.right.weight = nn.Parameter(B.contiguous())
        return layer.to(A.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        """B x, computed once for the layers that share B."""
        return self._product.compute(x, self.right)

    def dense(self) -> Float[Tensor, "out in"]:
        return dense_weight(self.left) @ dense_weight(self.right)

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        refit_weight(self.left, *solve_output_factor(target, dense_weight(self.right).detach(), moment))

    def nbytes(self) -> int:
        return weight_nbytes(self.left) + weight_nbytes(self.right)

    def macs(self) -> int:
        return weight_macs(self.left) + weight_macs(self.right)

    @property
    def bias(self) -> Tensor | None:
        return self.left.bias

    def set_bias(self, bias: Tensor | None) -> None:
        set_bias(self.left, bias)

    def to_embedding(self, padding_idx: int | None) -> Format:
        return LowRankEmbedding.from_linear(self, padding_idx)

    def spec(self) -> dict[str, Any]:
        shared = {"shared_by": self._product.shared_by} if self._product.shared_by > 1 else {}
        return {**self._sizes, "rank": self.rank, "bias": self.bias is not None, **shared}


class LowRankEmbedding(EmbeddingFormat):
    """y = A B[:, token]: a table of `rank` numbers for each token, then one linear. The matrix is (width, vocabulary).

    Stored: the table (vocabulary, rank) and A (width, rank).

    Args:
        vocabulary: number of tokens.
        width: size of an embedding.
        rank: r.
        padding_idx: the padding token, whose row gets no gradient.

    Example:
        >>> LowRankEmbedding(vocabulary=10, width=4, rank=2, padding_idx=None)(torch.tensor([3])).shape
        torch.Size([1, 4])
    """

    kind = "low-rank-embedding"
    input_modules = ("table",)

    def __init__(self, vocabulary: int, width: int, rank: int, padding_idx: int | None) -> None:
        super().__init__()
        self.table: nn.Embedding | Format = nn.Embedding(vocabulary, rank, padding_idx=padding_idx)
        self.left: nn.Linear | Format = nn.Linear(rank, width, bias=False)
        self.vocabulary, self.width, self.rank, self.padding_idx = vocabulary, width, rank, padding_idx

    @classmethod
    def from_linear(cls, linear: LowRank, padding_idx: int | None) -> "LowRankEmbedding":
        """The factors of a `LowRank`, indexed by token instead of multiplied by a one-hot row."""
        width, vocabulary = linear.shape
        layer = cls.uninitialized(linear.weight.device, vocabulary, width, linear.rank, padding_idx)
        layer.left = linear.left
        right = linear.right
        if isinstance(right, Format):
            layer.table = right.to_embedding(padding_idx)
        else:
            layer.table.weight = nn.Parameter(right.weight.T.contiguous())
        return layer.to(linear.weight.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return self.width, self.vocabulary

    def forward(self, tokens: Tensor) -> Tensor:
        return self.left(self.table(tokens))

    def dense(self) -> Float[Tensor, "out in"]:
        return dense_weight(self.left) @ embedding_weight(self.table)

    def nbytes(self) -> int:
        return weight_nbytes(self.left) + weight_nbytes(self.table)

    def macs(self) -> int:
        return weight_macs(self.left)

    def spec(self) -> dict[str, Any]:
        return {
            "vocabulary": self.vocabulary,
            "width": self.width,
            "rank": self.rank,
            "padding_idx": self.padding_idx,
        }


class LowRankReader(Format):
    """y = A z + bias, where z = B x is computed by another layer that is called with the same x.

    Stored: A (out, r) and the bias; B is stored only with its owner.

    Args:
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        rank: r.
        bias: whether there is a bias.

    Example:
        >>> owner, reader = split_rows(LowRank.from_factors(torch.ones(5, 1), torch.ones(1, 3)), rows=(2, 3))
        >>> reader.shape, reader(torch.ones(3)).tolist()
        ((3, 3), [3.0, 3.0, 3.0])
    """

    kind = "low-rank-reader"
    input_modules = ()

    def __init__(self, out_features: int, in_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.left = nn.Linear(rank, out_features, bias=bias)
        self.out_features, self.in_features, self.rank = out_features, in_features, rank
        # In a tuple, so that torch does not register it: B is stored only with its owner.
        self._source: tuple[LowRank, ...] = ()

    @classmethod
    def from_factor(cls, A: Float[Tensor, "out r"], source: LowRank) -> "LowRankReader":
        """A reader with this A, of the B of `source`, without a bias."""
        layer = cls.uninitialized(A.device, A.shape[0], source.in_features, A.shape[1], bias=False)
        layer.left.weight = nn.Parameter(A.contiguous())
        layer.set_source(source)
        return layer.to(A.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self._source[0].project(x))

    def dense(self) -> Float[Tensor, "out in"]:
        return dense_weight(self.left) @ dense_weight(self._source[0].right)

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        refit_weight(self.left, *solve_output_factor(target, dense_weight(self._source[0].right).detach(), moment))

    def nbytes(self) -> int:
        return weight_nbytes(self.left)

    def macs(self) -> int:
        return weight_macs(self.left)

    @property
    def bias(self) -> Tensor | None:
        return self.left.bias

    def set_bias(self, bias: Tensor | None) -> None:
        set_bias(self.left, bias)

    @property
    def source(self) -> Format | None:
        return self._source[0] if self._source else None

    def set_source(self, source: Format) -> None:
        if not isinstance(source, LowRank):
            raise UserError(f"A layer of the kind '{self.kind}' reads from a '{LowRank.kind}'; got a '{source.kind}'.")
        self._source = (source,)

    def spec(self) -> dict[str, Any]:
        return {**self._sizes, "rank": self.rank, "bias": self.bias is not None}


def split_rows(whole: LowRank, rows: tuple[int, ...]) -> tuple[Format, ...]:
    """One format for each of several matrices that were solved as one, stacked by rows.

    Args:
        whole: the format of the stacked matrix.
        rows: rows of each matrix.

    Returns:
        A `LowRank` that owns the right factor, and a `LowRankReader` for each of the others.

    Example:
        >>> first, second = split_rows(LowRank.from_factors(torch.ones(5, 1), torch.ones(1, 3)), rows=(2, 3))
        >>> first.nbytes(), second.nbytes()
        (20, 12)
    """
    parts = dense_weight(whole.left).detach().split(rows)
    owner = LowRank.from_factors(parts[0].clone(), dense_weight(whole.right).detach(), shared_by=len(parts))
    return owner, *(LowRankReader.from_factor(part.clone(), owner) for part in parts[1:])
