"""Compressed stacks: one matrix of every expert of a layer, all in one format and one size.

A method solves the matrix of one expert at a time and returns a `Format`. `stack_formats` collects the formats of all
experts in one `ExpertStack`, which computes them together and is saved as one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from laconic.errors import UserError
from laconic.formats.base import Format
from laconic.formats.codebook import Codebook
from laconic.formats.experts import DenseExpertStack, ExpertStack
from laconic.formats.ggml import GgmlBlocks
from laconic.formats.int8 import DynamicInt8
from laconic.formats.lowrank import LowRank
from laconic.formats.packed_stack import CodebookStack, GgmlStack, Int8Stack, QuantizedStack
from laconic.formats.quantized import Quantized
from laconic.formats.routing import Routing
from laconic.formats.sparse import Sparse
from laconic.formats.sparse_stack import SparseStack
from laconic.formats.sum import Sum


class LowRankStack(ExpertStack):
    """y = A_e (B_e x) + b_e for expert e: two grouped products.

    Stored: `right` has B_e (experts, r, in), `left` has A_e (experts, out, r); both are stacks, which a later step can
    compress; and the biases.

    Args:
        experts: the number of matrices.
        out_features: rows of each.
        in_features: columns of each.
        rank: r.
        bias: whether there are biases.

    Example:
        >>> stack = LowRankStack(experts=4, out_features=6, in_features=8, rank=2, bias=False)
        >>> stack.right.weight.shape, stack.left.weight.shape, stack.macs()
        (torch.Size([4, 2, 8]), torch.Size([4, 6, 2]), 28)
    """

    kind = "low-rank-experts"
    input_modules = ("right",)

    def __init__(self, experts: int, out_features: int, in_features: int, rank: int, bias: bool) -> None:
        super().__init__(experts, out_features, in_features, bias)
        self.right: ExpertStack = DenseExpertStack(experts, rank, in_features, bias=False)
        self.left: ExpertStack = DenseExpertStack(experts, out_features, rank, bias=False)
        self.rank = rank

    @classmethod
    def like(cls, matrix: LowRank, experts: int) -> "LowRankStack":
        """An uninitialised stack of matrices like this one."""
        with torch.device("meta"):
            stack = cls(experts, *matrix.shape, rank=matrix.rank, bias=False)
        stack.right, stack.left = empty_stack(matrix.right, experts), empty_stack(matrix.left, experts)
        return stack

    def set_slice(self, index: int, matrix: Format | nn.Module) -> None:
        assert isinstance(matrix, LowRank)
        if matrix.rank > self.rank:
            # Statistics of few tokens may have given the experts before fewer terms.
            self._raise_rank(matrix.rank)
        self.right.set_slice(index, _pad_rank(matrix.right, 0, self.rank))
        self.left.set_slice(index, _pad_rank(matrix.left, 1, self.rank))
        self._set_bias_of(index, matrix.bias)

    def _raise_rank(self, rank: int) -> None:
        right, left, missing = self.right, self.left, rank - self.rank
        assert isinstance(right, DenseExpertStack) and isinstance(left, DenseExpertStack)
        self.right = DenseExpertStack.of(nn.Parameter(pad(right.weight.detach(), (0, 0, 0, missing))))
        self.left = DenseExpertStack.of(nn.Parameter(pad(left.weight.detach(), (0, missing))))
        self.rank = rank

    def slice(self, index: int) -> LowRank:
        with torch.device("meta"):
            layer = LowRank(*self.shape, rank=self.rank, bias=False)
        layer.right, layer.left = self.right.slice(index), self.left.slice(index)
        layer.weight = layer.left.weight.new_empty(0)
        layer.set_bias(None if self.bias is None else self.bias.detach()[index])
        return layer

    def product(self, x: Float[Tensor, "pairs in"], routing: Routing) -> Float[Tensor, "pairs out"]:
        return self.left(self.right(x, routing), routing)

    def nbytes(self) -> int:
        return self.left.nbytes() + self.right.nbytes()

    def nbytes_in(self, dtype: torch.dtype) -> int:
        return self.left.nbytes_in(dtype) + self.right.nbytes_in(dtype)

    def macs(self) -> int:
        return self.left.macs() + self.right.macs()

    def spec(self) -> dict[str, Any]:
        return {**self._sizes, "rank": self.rank}


def _pad_rank(factor: nn.Module, dimension: int, rank: int) -> nn.Module:
    """A factor with terms of zeros up to `rank`, which is counted in `dimension` of its matrix."""
    if not isinstance(factor, nn.Linear) or factor.weight.shape[dimension] == rank:
        return factor
    missing = rank - factor.weight.shape[dimension]
    weight = pad(factor.weight.detach(), (0, 0, 0, missing) if dimension == 0 else (0, missing))
    with torch.device("meta"):
        padded = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    padded.weight = nn.Parameter(weight)
    return padded


class SumStack(ExpertStack):
    """y = S_e x + R_e x + b_e for expert e, with `first` and `second` two stacks of the same size.

    Stored: both stacks and the biases.

    Args:
        experts: the number of matrices.
        out_features: rows of each.
        in_features: columns of each.
        bias: whether there are biases.
    """

    kind = "sum-experts"
    input_modules = ("first", "second")

    def __init__(self, experts: int, out_features: int, in_features: int, bias: bool) -> None:
        super().__init__(experts, out_features, in_features, bias)
        # The two stacks are set later, as nested formats are when a model is loaded.
        self.first: nn.Module = nn.Module()
        self.second: nn.Module = nn.Module()

    @classmethod
    def like(cls, matrix: Sum, experts: int) -> "SumStack":
        """An uninitialised stack of matrices like this one."""
        stack = cls(experts, *matrix.shape, bias=False)
        stack.first, stack.second = (empty_stack(part, experts) for part in matrix.parts)
        return stack

    @property
    def parts(self) -> tuple[ExpertStack, ExpertStack]:
        """`first` and `second`."""
        assert isinstance(self.first, ExpertStack)
        assert isinstance(self.second, ExpertStack)
        return self.first, self.second

    def set_slice(self, index: int, matrix: Format | nn.Module) -> None:
        assert isinstance(matrix, Sum)
        for stack, part in zip(self.parts, matrix.parts, strict=True):
            stack.set_slice(index, part)
        self._set_bias_of(index, matrix.bias)

    def slice(self, index: int) -> Sum:
        first, second = (stack.slice(index) for stack in self.parts)
        assert isinstance(first, Format)
        assert isinstance(second, Format)
        layer = Sum.from_parts(first, second)
        layer.set_bias(None if self.bias is None else self.bias.detach()[index])
        return layer

    def product(self, x: Float[Tensor, "pairs in"], routing: Routing) -> Float[Tensor, "pairs out"]:
        return self.first(x, routing) + self.second(x, routing)

    def nbytes(self) -> int:
        return sum(stack.nbytes() for stack in self.parts)

    def nbytes_in(self, dtype: torch.dtype) -> int:
        return sum(stack.nbytes_in(dtype) for stack in self.parts)

    def macs(self) -> int:
        return sum(stack.macs() for stack in self.parts)

    def spec(self) -> dict[str, Any]:
        return self._sizes


_STACK_OF: Mapping[type[nn.Module], type[Any]] = {
    LowRank: LowRankStack,
    Quantized: QuantizedStack,
    Codebook: CodebookStack,
    DynamicInt8: Int8Stack,
    GgmlBlocks: GgmlStack,
    Sparse: SparseStack,
    Sum: SumStack,
}
"""The stack of each format."""

STACKS: tuple[type[ExpertStack], ...] = tuple(_STACK_OF.values())
"""Every kind of compressed stack; the config.json of a saved model names it by its `kind`."""


def stack_formats(formats: Iterable[Format], experts: int) -> ExpertStack:
    """Collect the compressed matrices of all experts in one stack.

    Each format is copied into the stack before the next one is taken, so that they need not exist together.

    Args:
        formats: the matrix of each expert, all of one kind and size.
        experts: their number.

    Raises:
        UserError: there is no stack of this kind.

    Example:
        >>> matrices = (LowRank.from_factors(torch.ones(3, 1), torch.ones(1, 2)) for _ in range(4))
        >>> stack = stack_formats(matrices, experts=4)
        >>> stack.kind, stack.experts, stack.shape, stack.nbytes()
        ('low-rank-experts', 4, (3, 2), 80)
    """
    stack: ExpertStack | None = None
    for index, format in enumerate(formats):
        stack = stack or empty_stack(format, experts)
        stack.set_slice(index, format)
    assert stack is not None, "a layer has at least one expert"
    return stack


def empty_stack(matrix: Format | nn.Module, experts: int) -> ExpertStack:
    """A stack for matrices like `matrix`, in its kind, size, dtype and device, whose values are not set.

    Args:
        matrix: a format, or a linear layer.
        experts: the number of matrices.

    Raises:
        UserError: there is no stack of this kind.
    """
    if isinstance(matrix, nn.Linear):
        weight = matrix.weight.detach()
        with torch.device("meta"):
            stack = DenseExpertStack(experts, *weight.shape, bias=matrix.bias is not None)
        return stack.to_empty(device=weight.device).to(weight.dtype)
    kind = _STACK_OF.get(type(matrix))
    if kind is None:
        raise UserError(
            f"Experts cannot be stored as '{matrix.kind if isinstance(matrix, Format) else type(matrix).__name__}': "
            "there is no stack of such matrices; use another method for them, or leave them out of the targets."
        )
    return kind.like(matrix, experts)
