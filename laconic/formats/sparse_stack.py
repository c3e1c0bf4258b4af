"""Stacks of pruned matrices: stored as masks and nonzero values, computed with as dense matrices that have zeros."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from laconic.errors import UserError
from laconic.formats.base import Format
from laconic.formats.experts import ExpertStack
from laconic.formats.masked import BITS, VALUES
from laconic.formats.routing import Routing, grouped_product
from laconic.formats.sparse import Sparse

WEIGHT = "weight"


class SparseStack(ExpertStack):
    """y = (Ŵ_e ∘ M_e) x + b_e for expert e.

    Stored: `values` (experts, kept), the kept weights of each expert row by row; `bits` (experts, bytes), their
    positions as in `Sparse`; the biases. If earlier pruning left different numbers of weights, the values of an expert
    with fewer are filled up with zeros. In memory there are the matrices with their zeros, `weight` (experts, out, in),
    and `mask`, which keeps the zeros in training.

    Args:
        experts: the number of matrices.
        out_features: rows of each.
        in_features: columns of each.
        kept: the number of kept weights of the expert with the most.
        bias: whether there are biases.
        pattern: (N, M) where exactly N of every M consecutive inputs are kept, else None.

    Example:
        >>> stack = SparseStack(experts=4, out_features=6, in_features=8, kept=12, bias=False)
        >>> stack.nbytes()  # 48 bytes of values and 6 of the mask for each expert
        216
    """

    kind = "sparse-experts"
    matrix_parameter = WEIGHT
    weight: nn.Parameter | None
    mask: Tensor | None
    values: nn.Parameter | None
    bits: nn.Parameter | None

    def __init__(
        self,
        experts: int,
        out_features: int,
        in_features: int,
        kept: int,
        bias: bool,
        pattern: Sequence[int] | None = None,
    ) -> None:
        super().__init__(experts, out_features, in_features, bias)
        self.kept, self.pattern = kept, None if pattern is None else (pattern[0], pattern[1])
        self.register_parameter(WEIGHT, None)
        self.register_buffer("mask", None, persistent=False)
        self.values = nn.Parameter(torch.empty(experts, kept))
        nbytes = self._codec().index_nbytes
        self.bits = nn.Parameter(torch.empty(experts, nbytes, dtype=torch.uint8), requires_grad=False)
        self.register_load_state_dict_pre_hook(_unpack_before_loading)

    def _codec(self) -> Sparse:
        """A matrix of this kind without weights, which converts a mask to bits and back."""
        with torch.device("meta"):
            return Sparse(*self.shape, kept=self.kept, bias=False, pattern=self.pattern)

    @classmethod
    def like(cls, matrix: Format, experts: int) -> "SparseStack":
        """A stack of matrices like this one, without biases; all weights are zero until they are set."""
        assert isinstance(matrix, Sparse)
        with torch.device("meta"):
            stack = cls(experts, *matrix.shape, kept=matrix.kept, bias=False, pattern=matrix.pattern)
        like, shape = matrix.dense().detach(), (experts, *matrix.shape)
        stack.fill(like.new_zeros(shape), like.new_zeros(shape, dtype=torch.bool))
        return stack

    def set_slice(self, index: int, matrix: Format | nn.Module) -> None:
        assert isinstance(matrix, Sparse)
        assert self.weight is not None, "a packed stack must be unpacked first"
        assert self.mask is not None
        assert matrix.mask is not None
        self.kept = max(self.kept, matrix.kept)
        if matrix.pattern != self.pattern:
            self.pattern = None
        self.weight.detach()[index], self.mask[index] = matrix.dense().detach(), matrix.mask
        self._set_bias_of(index, matrix.bias)

    def slice(self, index: int) -> Sparse:
        assert self.weight is not None, "a packed stack must be unpacked first"
        assert self.mask is not None
        if self.mask.is_meta:
            layer = self._codec()
            layer.unpack()
            layer = layer.to(self.weight.dtype)
        else:
            layer = Sparse.from_dense(self.weight.detach()[index], self.mask[index], self.pattern)
        layer.set_bias(None if self.bias is None else self.bias.detach()[index])
        return layer

    def dense(self, index: int) -> Float[Tensor, "out in"]:
        assert self.weight is not None, "a packed stack must be unpacked first"
        return self.weight.detach()[index]

    def support(self, index: int) -> Bool[Tensor, "out in"] | None:
        assert self.mask is not None, "a packed stack must be unpacked first"
        return self.mask[index]

    def product(self, x: Float[Tensor, "pairs in"], routing: Routing) -> Float[Tensor, "pairs out"]:
        assert self.weight is not None, "a packed stack must be unpacked first"
        weight = self.weight
        if self.mask is not None and torch.is_grad_enabled() and weight.requires_grad:
            # Pruned weights get a gradient of zero and stay zero.
            weight = torch.where(self.mask, weight, 0)
        return grouped_product(x, weight, routing.ends)

    def fill(self, weight: Tensor, mask: Tensor, trainable: bool = True) -> None:
        """Replace `values` and `bits` by matrices and their masks (experts, out, in)."""
        self.values = self.bits = None
        self.mask = mask
        self.weight = nn.Parameter(torch.where(mask, weight, 0), requires_grad=trainable)

    def unpack(self) -> None:
        """Turn `values` and `bits`, once they are loaded, into matrices and masks; does nothing the second time.

        Raises:
            UserError: a mask keeps more weights than there are values.
        """
        if self.values is None or self.bits is None:
            return
        values, trainable = self.values.detach(), self.values.requires_grad
        if values.is_meta:
            shape = (self.experts, *self.shape)
            self.fill(values.new_empty(shape), values.new_empty(shape, dtype=torch.bool), trainable)
        else:
            self.fill(*self._unpacked(values, self.bits.detach()), trainable)

    def _unpacked(self, values: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices and masks of stored values and bits."""
        codec = self._codec()
        mask = torch.stack([codec.to_mask(row) for row in bits])
        counts = mask.flatten(1).count_nonzero(1)
        if int(counts.max()) != values.shape[1]:
            raise UserError(
                f"The experts of a pruned layer keep up to {int(counts.max())} weights by their masks, but "
                f"{values.shape[1]} are stored for each: the file is damaged; save the model again."
            )
        weight = values.new_zeros(mask.shape)
        weight[mask] = values[self._is_stored(counts, values.shape[1])]
        return weight, mask

    def _packed(self) -> dict[str, Tensor]:
        """The tensors to store in place of the matrices."""
        assert self.weight is not None
        assert self.mask is not None
        codec = self._codec()
        counts = self.mask.flatten(1).count_nonzero(1)
        values = self.weight.new_zeros(self.experts, self.kept)
        values[self._is_stored(counts, self.kept)] = self.weight.detach()[self.mask]
        return {VALUES: values, BITS: torch.stack([codec.to_bits(mask) for mask in self.mask])}

    @staticmethod
    def _is_stored(counts: Tensor, most: int) -> Tensor:
        """(experts, most), True at the places of values; the others are filled up."""
        return torch.arange(most, device=counts.device) < counts[:, None]

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Like the method of torch, with `values` and `bits` in place of the matrices."""
        state = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        if state.pop(prefix + WEIGHT, None) is not None:
            state |= {prefix + name: tensor for name, tensor in self._packed().items()}
        return state

    def unpack_state_dict(self, state_dict: Any, prefix: str) -> None:
        """Replace `values` and `bits` in a state dict by the matrices, so that torch can load it."""
        values, bits = state_dict.pop(prefix + VALUES, None), state_dict.pop(prefix + BITS, None)
        if values is not None and bits is not None:
            like = self.weight if self.values is None else self.values
            assert like is not None
            weight, mask = self._unpacked(values, bits)
            self.kept = values.shape[1]
            self.fill(
                torch.empty_like(weight, dtype=like.dtype, device=like.device), mask.to(like.device), like.requires_grad
            )
            state_dict[prefix + WEIGHT] = weight

    @property
    def count(self) -> int:
        return self.experts * self.kept if self.mask is None or self.mask.is_meta else int(self.mask.count_nonzero())

    @property
    def packed_names(self) -> tuple[str, ...]:
        return VALUES, BITS

    def nbytes(self) -> int:
        stored = self.weight if self.values is None else self.values
        assert stored is not None
        return self.nbytes_in(stored.dtype)

    def nbytes_in(self, dtype: torch.dtype) -> int:
        return self.experts * self.kept * dtype.itemsize + self.index_nbytes

    @property
    def index_nbytes(self) -> int:
        """Bytes on disk of the positions of the kept weights."""
        return self.experts * self._codec().index_nbytes

    def macs(self) -> int:
        # A dense product includes the zeros.
        return self.out_features * self.in_features

    def spec(self) -> dict[str, Any]:
        pattern = {} if self.pattern is None else {"pattern": list(self.pattern)}
        return {**self._sizes, "kept": self.kept, **pattern}


def _unpack_before_loading(stack: SparseStack, state_dict: Any, prefix: str, *_: Any) -> None:
    stack.unpack_state_dict(state_dict, prefix)
