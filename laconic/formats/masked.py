"""A matrix with zeros: stored as a mask and its nonzero values, computed with as a plain dense module.

In memory there is the plain module, with zeros in its weight, and the mask, which keeps them zero in training. A state
dict always has `values` and `bits` in place of the weight. A format that is about to be loaded has these two as
parameters, for transformers to fill, and `unpack` turns it into the plain module.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from laconic.errors import UserError
from laconic.formats.base import Format
from laconic.numerics.combinations import (
    follows_pattern,
    index_bits,
    rank_combinations,
    unrank_combinations,
)
from laconic.numerics.packing import pack, pack_mask, packed_nbytes, unpack, unpack_mask
from laconic.numerics.refit import inverse, refit

VALUES = "values"
BITS = "bits"

M = TypeVar("M", bound="Masked")


class Masked(Format):
    """A pruned matrix Ŵ ∘ M, base class of `Sparse` and `SparseEmbedding`.

    Stored: `values`, the kept weights row by row in the dtype of the model; `bits`, one bit for each weight, or ⌈log₂
    C(M, N)⌉ bits for each group of an N:M pattern. `mask` (out, in) is True where a weight is kept; it is None until
    `unpack`.

    Args:
        shape: (out, in).
        kept: number of kept weights.
        pattern: (N, M) where exactly N of every M consecutive inputs are kept, else None.

    Example:
        >>> from laconic.formats import Sparse
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> layer = Sparse.from_dense(weight, weight > 1)
        >>> isinstance(layer, Masked), layer.kept, layer.support.tolist()
        (True, 3, [[False, True], [True, True]])
    """

    input_modules = ()
    child: ClassVar[str]
    """The plain module, whose weight is not stored as such."""
    mask: Tensor | None
    values: nn.Parameter | None
    bits: nn.Parameter | None

    def __init__(self, shape: tuple[int, int], kept: int, pattern: Sequence[int] | None) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.kept, self.pattern = kept, None if pattern is None else (pattern[0], pattern[1])
        self.register_buffer("mask", None, persistent=False)
        self.values = nn.Parameter(torch.empty(kept))
        self.bits = nn.Parameter(torch.empty(self.index_nbytes, dtype=torch.uint8), requires_grad=False)
        self.register_load_state_dict_pre_hook(_unpack_before_loading)

    @classmethod
    def _from_plain(
        cls: type[M],
        weight: Float[Tensor, "out in"],
        mask: Bool[Tensor, "out in"],
        pattern: tuple[int, int] | None,
        kept: int = 0,
        **options: Any,
    ) -> M:
        """The format of a matrix.

        Args:
            weight: the matrix.
            mask: True where a weight is kept.
            pattern: (N, M) if the mask keeps exactly N of every M consecutive inputs, else None.
            kept: the number of kept weights, which is needed only on the meta device.
            **options: the other arguments of the constructor.
        """
        layer = cls.uninitialized(mask.device, *weight.shape, kept=kept, pattern=pattern, **options)
        layer.fill(weight.detach(), mask)
        return layer.to(weight.dtype)

    @abstractmethod
    def set_plain_weight(self, weight: nn.Parameter) -> None:
        """Create the plain module with this weight."""

    @abstractmethod
    def orient(self, weight: Tensor) -> Tensor:
        """The weight of the plain module as (out, in), and back."""

    @property
    def count(self) -> int:
        return self.kept

    @property
    def packed_names(self) -> tuple[str, ...]:
        return VALUES, BITS

    @property
    def is_packed(self) -> bool:
        """Whether `unpack` has yet to be called."""
        return self.mask is None

    @property
    def support(self) -> Bool[Tensor, "out in"] | None:
        return self.mask

    def dense(self) -> Float[Tensor, "out in"]:
        return self.orient(self.plain_weight)

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        assert self.mask is not None, "a packed layer must be unpacked first"
        H = moment.double()
        values = refit(target, self.mask, H, inverse(H))
        with torch.no_grad():
            self.plain_weight.copy_(self.orient(values))

    @property
    def plain_weight(self) -> Tensor:
        """The weight of the plain module."""
        return self.get_submodule(self.child).get_parameter("weight")

    def masked_weight(self) -> Tensor | None:
        """The weight times the mask if gradients are needed: pruned weights get a gradient of zero and stay zero.

        Returns:
            None if the plain module can be called unchanged.
        """
        weight = self.plain_weight
        if self.mask is None or not (torch.is_grad_enabled() and weight.requires_grad):
            return None
        return torch.where(self.orient(self.mask), weight, 0)

    def nbytes(self) -> int:
        stored = self.plain_weight if self.values is None else self.values
        return self.kept * stored.element_size() + self.index_nbytes

    def fill(self, weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], trainable: bool = True) -> None:
        """Replace `values` and `bits` by the plain module.

        Args:
            weight: the matrix; values outside the mask are set to zero.
            mask: True where a weight is kept.
            trainable: whether the weight requires gradients.
        """
        self.values = self.bits = None
        # On the meta device nothing can be counted, so the given count stays.
        self.mask, self.kept = mask, self.kept if mask.is_meta else int(mask.count_nonzero())
        weight = self.orient(torch.where(mask, weight, 0)).contiguous()
        self.set_plain_weight(nn.Parameter(weight, requires_grad=trainable))

    def unpack(self) -> None:
        """Turn `values` and `bits`, once they are loaded, into the plain module; does nothing the second time.

        Raises:
            UserError: the mask keeps more or fewer weights than there are values.
        """
        if self.values is None or self.bits is None:
            return
        if self.bits.is_meta:
            self.fill(self.values.new_empty(self.shape), self.bits.new_empty(self.shape, dtype=torch.bool))
            return
        mask, trainable = self.to_mask(self.bits.detach()), self.values.requires_grad
        if int(mask.count_nonzero()) != len(self.values):
            raise UserError(
                f"A pruned layer of {self.out_features} x {self.in_features} keeps {int(mask.count_nonzero())} weights "
                f"by its mask, but {len(self.values)} are stored: the file is damaged; save the model again."
            )
        self.fill(_scatter(self.values.detach(), mask), mask, trainable)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Like the method of torch, with `values` and `bits` in place of the weight."""
        state = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        weight = state.pop(f"{prefix}{self.child}.weight", None)
        if weight is not None and self.mask is not None:
            state[prefix + VALUES] = self.orient(weight)[self.mask]
            state[prefix + BITS] = self.to_bits(self.mask)
        return state

    def unpack_state_dict(self, state_dict: Any, prefix: str, errors: list[str]) -> None:
        """Replace `values` and `bits` in a state dict by the weight, so that torch can load it; add to `errors`."""
        values, bits = state_dict.pop(prefix + VALUES, None), state_dict.pop(prefix + BITS, None)
        if values is None or bits is None:
            return
        error = self._prepare(values, bits)
        if error is None:
            state_dict[f"{prefix}{self.child}.weight"] = self.orient(_scatter(values, self.mask))
        else:
            errors.append(f"{prefix[:-1]}: {error}")

    def _prepare(self, values: Tensor, bits: Tensor) -> str | None:
        """Prepare for a weight with these values and mask bits; returns an error message or None."""
        if len(bits) != self.index_nbytes:
            return f"the mask must have {self.index_nbytes} bytes; got {len(bits)}"
        mask = self.to_mask(bits)
        if int(mask.count_nonzero()) != len(values):
            return f"the mask keeps {int(mask.count_nonzero())} weights; got {len(values)} values"
        if self.values is not None:
            like = self.values
            mask = mask.to(like.device)
            self.fill(torch.empty(self.shape, dtype=like.dtype, device=like.device), mask, like.requires_grad)
        elif self.mask is not None:
            self.mask, self.kept = mask.to(self.mask.device), len(values)
        return None

    @property
    def index_nbytes(self) -> int:
        """Bytes on disk of the positions of the kept weights."""
        if self.pattern is None:
            return packed_nbytes(self.out_features * self.in_features, 1)
        return packed_nbytes(self.out_features * self.in_features // self.pattern[1], index_bits(self.pattern))

    def to_bits(self, mask: Bool[Tensor, "out in"]) -> UInt8[Tensor, " bytes"]:
        """The positions of the kept weights as they are stored."""
        if self.pattern is None:
            return pack_mask(mask)
        return pack(rank_combinations(mask.view(-1, self.pattern[1])), index_bits(self.pattern))

    def to_mask(self, bits: Tensor) -> Bool[Tensor, "out in"]:
        """The mask of stored positions.

        Raises:
            UserError: they do not follow the pattern, or have another number of bytes.
        """
        if len(bits) != self.index_nbytes:
            raise UserError(
                f"The mask of a pruned layer of {self.out_features} x {self.in_features} must have "
                f"{self.index_nbytes} bytes; got {len(bits)}: the file is damaged; save the model again."
            )
        # transformers may have cast it with the weights, to a dtype that holds every byte value.
        stream = bits.to(torch.uint8)
        if self.pattern is None:
            return unpack_mask(stream, self.shape)
        kept, group_size = self.pattern
        numbers = unpack(stream, index_bits(self.pattern), self.out_features * self.in_features // group_size)
        # 2:4 has six combinations, and three bits have eight values.
        if len(numbers) and int(numbers.max()) >= math.comb(group_size, kept):
            raise UserError(
                f"A pruned layer of {self.out_features} x {self.in_features} has a group that is no combination of "
                f"{kept} of {group_size}: the file is damaged; save the model again."
            )
        return unrank_combinations(numbers, self.pattern).view(self.shape)

    def masked_spec(self) -> dict[str, Any]:
        """The part of `spec` that all kinds share."""
        pattern = {} if self.pattern is None else {"pattern": list(self.pattern)}
        return {**self._sizes, "kept": self.kept, **pattern}


def exact_pattern(mask: Bool[Tensor, "out in"], pattern: tuple[int, int] | None) -> tuple[int, int] | None:
    """`pattern` if the mask follows it exactly, else None; groups with earlier zeros do not.

    Example:
        >>> exact_pattern(torch.tensor([[True, False, True, True]]), (1, 2)) is None
        True
    """
    return pattern if pattern is not None and follows_pattern(mask, pattern) else None


def _unpack_before_loading(layer: Masked, state_dict: Any, prefix: str, *args: Any) -> None:
    # The last argument is the list of errors that torch raises at the end.
    layer.unpack_state_dict(state_dict, prefix, args[-1])


def _scatter(values: Tensor, mask: Tensor | None) -> Tensor:
    assert mask is not None
    weight = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    weight[mask.to(values.device)] = values
    return weight
