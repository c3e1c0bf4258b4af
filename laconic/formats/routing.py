"""The pairs of tokens and experts that a router chooses, and the product of each expert's matrix with its tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

ALIGNMENT = 16
"""Bytes that the rows of every operand of `torch.nn.functional.grouped_mm` must be a multiple of."""
GROUPED_ON_CPU = (torch.bfloat16, torch.float16)
"""The dtypes in which one grouped product is faster than one product for each expert on a CPU."""

SUMMED_PAIRS = 1024
"""Pairs whose outputs are weighted at once."""


@dataclass(frozen=True, eq=False)
class Routing:
    """The pairs of a token and an expert of one forward pass, sorted by expert.

    Args:
        order: (pairs,), the position of each sorted pair among the pairs in the order of their tokens.
        tokens: (pairs,), the token of each pair.
        experts: (pairs,), the expert of each pair, ascending.
        weights: (pairs,), the weight that the router gives to the expert's output.
        ends: (experts,), int32, the cumulative number of pairs: those of expert e end before ends[e].

    Example:
        >>> Routing.of(torch.tensor([[2, 0], [2, 1]]), torch.ones(2, 2), experts=4).experts.tolist()
        [0, 1, 2, 2]
    """

    order: Int[Tensor, " pairs"]
    tokens: Int[Tensor, " pairs"]
    experts: Int[Tensor, " pairs"]
    weights: Float[Tensor, " pairs"]
    ends: Int[Tensor, " experts"]

    @classmethod
    def of(
        cls, top_k_index: Int[Tensor, "tokens k"], top_k_weights: Float[Tensor, "tokens k"], experts: int
    ) -> "Routing":
        """Sort the choices of a router by expert.

        Args:
            top_k_index: the experts of each token.
            top_k_weights: their weights.
            experts: the number of experts of the layer.

        Example:
            >>> routing = Routing.of(torch.tensor([[2, 0], [2, 1]]), torch.ones(2, 2), experts=4)
            >>> routing.tokens.tolist(), routing.counts.tolist()
            ([0, 1, 0, 1], [1, 1, 2, 0])
        """
        chosen, order = torch.sort(top_k_index.flatten(), stable=True)
        numbers = torch.arange(experts, device=chosen.device, dtype=chosen.dtype)
        # Unlike a histogram, a search has a result of known shape, so it also runs on the meta device.
        ends = torch.searchsorted(chosen, numbers, right=True, out_int32=True)
        return cls(order, order // top_k_index.shape[-1], chosen, top_k_weights.flatten()[order], ends)

    @property
    def counts(self) -> Int[Tensor, " experts"]:
        """(experts,), the number of tokens of each expert."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    def gather(self, outputs: Float[Tensor, "pairs width"], k: int) -> Float[Tensor, "tokens width"]:
        """Sum the weighted outputs of the experts of each token.

        Args:
            outputs: the output of each sorted pair.
            k: the number of experts of each token.
        """
        by_token = torch.empty_like(self.order)
        by_token[self.order] = torch.arange(len(self.order), device=self.order.device)
        dtype = torch.promote_types(outputs.dtype, self.weights.dtype)
        return _WeightedSum.apply(outputs.to(dtype), self.weights.to(dtype), by_token.view(-1, k), self.tokens)


class _WeightedSum(torch.autograd.Function):
    """The sums of `Routing.gather`, to the last bit those of transformers, with no copy of all outputs."""

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, weights: Tensor, by_token: Int[Tensor, "tokens k"], tokens: Int[Tensor, " pairs"]
    ) -> Tensor:
        ctx.save_for_backward(outputs, weights, tokens)
        sums = outputs.new_empty(len(by_token), outputs.shape[1])
        # The weighted outputs of few tokens stay in the cache until they are summed.
        at_once = max(1, SUMMED_PAIRS // by_token.shape[1])
        for chosen, own in zip(by_token.split(at_once), sums.split(at_once), strict=True):
            weighted = outputs.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
            torch.sum(weighted.mul_(weights[chosen][..., None]), dim=1, out=own)
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        outputs, weights, tokens = ctx.saved_tensors
        of_outputs, of_weights = torch.empty_like(outputs), torch.empty_like(weights)
        for start in range(0, len(tokens), SUMMED_PAIRS):
            own = slice(start, start + SUMMED_PAIRS)
            of_pairs = torch.index_select(grads[0], 0, tokens[own], out=of_outputs[own])
            if ctx.needs_input_grad[1]:
                of_weights[own] = (of_pairs * outputs[own]).sum(dim=1)
            of_pairs.mul_(weights[own, None])
        return of_outputs, of_weights if ctx.needs_input_grad[1] else None, None, None


def grouped_product(
    x: Float[Tensor, "pairs in"], weight: Float[Tensor, "experts out in"], ends: Int[Tensor, " experts"]
) -> Float[Tensor, "pairs out"]:
    """Multiply the rows of each expert by its matrix.

    This is one grouped product of torch where the dtype, the sizes and the device allow it and it is faster; otherwise
    it is one product for each expert that has rows.

    Args:
        x: the rows, sorted by expert.
        weight: the matrix of each expert.
        ends: as in `Routing`.

    Example:
        >>> weight = torch.tensor([[[1.0]], [[10.0]]])
        >>> grouped_product(torch.ones(3, 1), weight, torch.tensor([1, 3], dtype=torch.int32)).flatten().tolist()
        [1.0, 10.0, 10.0]
    """
    x = x.to(weight.dtype)
    if x.device.type == "meta" or not len(x):
        # The shape and the number of operations do not depend on the experts of the rows.
        return nn.functional.linear(x, weight[0])
    if can_group(x.device, weight.dtype, (weight.shape[1], weight.shape[2])):
        product = nn.functional.grouped_mm(x, weight.transpose(-2, -1), offs=ends)
        if product.requires_grad:
            # The backward pass refuses an expanded gradient, such as that of a sum.
            product.register_hook(torch.Tensor.contiguous)
        return product
    return _GroupedProduct.apply(x, weight, ends.diff(prepend=ends.new_zeros(1)).tolist())


class _GroupedProduct(torch.autograd.Function):
    """One product for each expert that has rows; results and gradients are written into one tensor each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        return _multiply_groups(x, weight.transpose(-2, -1), counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = _multiply_groups(grads[0], weight, ctx.counts) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight)
            for grad, rows, own in zip(grads[0].split(ctx.counts), x.split(ctx.counts), of_weight, strict=True):
                if len(rows):
                    torch.mm(grad.T, rows, out=own)
        return of_x, of_weight, None


def _multiply_groups(
    x: Float[Tensor, "pairs in"], matrices: Float[Tensor, "experts in out"], counts: list[int]
) -> Float[Tensor, "pairs out"]:
    product = x.new_empty(len(x), matrices.shape[2])
    for rows, matrix, own in zip(x.split(counts), matrices, product.split(counts), strict=True):
        if len(rows):
            torch.mm(rows, matrix, out=own)
    return product


def can_group(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> bool:
    """Whether torch has a fast grouped product for the matrices of experts.

    Args:
        device: the device of the matrices.
        dtype: their dtype.
        shape: (out, in) of each.
    """
    if any(size * dtype.itemsize % ALIGNMENT for size in shape):
        return False
    if device.type == "cuda":
        return dtype is torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and dtype in GROUPED_ON_CPU
