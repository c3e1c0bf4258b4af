"""Logits of a reference whose head is that of the model, from the difference of their last hidden states.

Let z = W h + b be the logits of the model, and h' the last hidden states of the reference. If both have the same head,

    z' = W h' + b = z − W (h − h').

The product is rounded to bfloat16. Its error is relative to the difference of the models, so the divergence keeps its
digits; rounded logits would add noise of their own. It takes half of the time of a product in float32, and the weights
of a second head need no memory.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from laconic.evaluate.halves import Head

TRIALS = 2
"""The random states by which a head is compared with its matrix."""


class SharedHead:
    """The head that a model shares with its reference.

    Args:
        weight: W of both.

    Example:
        >>> ours, theirs = torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0, 1.0]])
        >>> SharedHead(torch.eye(2)).reference_logits(ours, ours, theirs)
        tensor([[2., 1.]])
    """

    def __init__(self, weight: Float[Tensor, "vocabulary width"]) -> None:
        self._weight = weight.bfloat16()

    def reference_logits(
        self,
        logits: Float[Tensor, "n vocabulary"],
        states: Float[Tensor, "n width"],
        reference: Float[Tensor, "n width"],
    ) -> Float[Tensor, "n vocabulary"]:
        """The logits of the reference.

        Args:
            logits: those of the model.
            states: the last hidden states of the model.
            reference: the last hidden states of the reference.
        """
        return logits - linear((states - reference).bfloat16(), self._weight)


@torch.inference_mode()
def find_shared_head(head: Head, reference: Head) -> SharedHead | None:
    """The head that two models share; None if they differ, or do more than multiply by a matrix.

    Args:
        head: the head of the model, on loan.
        reference: the head of the reference, on loan.
    """
    found: list[nn.Linear] = []
    for each in (head, reference):
        module = each.output_embeddings
        if not isinstance(module, nn.Linear):
            return None
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(TRIALS, module.in_features, generator=generator).to(module.weight)
        # Some heads scale or cap their logits.
        if not torch.allclose(each(states), linear(states, module.weight, module.bias), rtol=1e-5, atol=1e-5):
            return None
        found.append(module)
    own, theirs = found
    is_shared = _are_equal(own.weight, theirs.weight) and _are_equal(own.bias, theirs.bias)
    return SharedHead(own.weight) if is_shared else None


def _are_equal(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two tensors have the same shape and values, or neither exists."""
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)
