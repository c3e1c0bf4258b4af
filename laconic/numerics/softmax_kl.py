"""KL divergence between softmaxes over many classes, in float32 without loss by cancellation.

With logits z of the reference and w of another model, p = softmax(z), a = z − w and m = Σ p a:

    KL(p ‖ softmax(w)) = log Σ p exp(m − a) = log1p(Σ p expm1(m − a))

The direct form Σ p (log p − log q) subtracts two sums over all classes, each with a rounding error near 1e-6 in
float32, which is as large as the divergence of similar models. Here all terms are differences of the logits, which are
small where the models are similar. Where m − a is too large for float32, the row is computed in float64.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from laconic.numerics.distributions import CATEGORICAL

ELEMENTS = 2**18
"""The number of logits that are compared at a time: 1 MiB in float32, which stays in the cache of a processor."""
LARGEST = 60.0
"""The largest exponent that is computed in float32, where exp overflows above 88."""


class Comparison(NamedTuple):
    """Two softmaxes beside each other, for each row.

    Args:
        kl: KL(p ‖ q) in nats.
        reference_nats: −log p at the target.
        nats: −log q at the target.
        same: whether both have the same largest logit.
    """

    kl: Float[Tensor, " n"]
    reference_nats: Float[Tensor, " n"]
    nats: Float[Tensor, " n"]
    same: Bool[Tensor, " n"]


def softmax_kl(z: Float[Tensor, "n classes"], w: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """KL(softmax(z) ‖ softmax(w)) of each row, in nats.

    Args:
        z: finite logits of the reference, in float32 or float64.
        w: finite logits of the other model.

    Returns:
        One number for each row, in float64. It is 0 where z = w.

    Example:
        >>> softmax_kl(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.zeros(2, 2))
        tensor([0.0000, 0.3278], dtype=torch.float64)
    """
    return compare_softmax(z, w, torch.zeros(len(z), dtype=torch.long, device=z.device)).kl


def compare_softmax(
    z: Float[Tensor, "n classes"], w: Float[Tensor, "n classes"], targets: Int[Tensor, " n"]
) -> Comparison:
    """p = softmax(z) and q = softmax(w) of each row, beside each other.

    With a centred, so that m = 0, log q = log p − a − KL; the sum over the classes of q is not computed again.

    Args:
        z: finite logits of the reference, in float32 or float64.
        w: finite logits of the other model.
        targets: the class of each row.

    Returns:
        Numbers in float64.

    Example:
        >>> z, w = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)
        >>> [round(float(value), 4) for value in compare_softmax(z, w, torch.tensor([1]))]
        [0.3278, 2.1269, 0.6931, 1.0]
    """
    kl = torch.empty(len(z), dtype=torch.float64, device=z.device)
    found = Comparison(kl, torch.empty_like(kl), torch.empty_like(kl), torch.empty_like(kl, dtype=torch.bool))
    # New memory for each tensor of this size would take longer than the arithmetic.
    rows = min(_rows_at_a_time(z), len(z))
    p, a = z.new_empty(rows, z.shape[1]), z.new_empty(rows, z.shape[1])
    for start in range(0, len(z), max(rows, 1)):
        part = slice(start, min(start + rows, len(z)))
        n = part.stop - start
        own = _compare_rows(z[part], w[part], targets[part, None], p[:n], a[:n])
        for whole, values in zip(found, own, strict=True):
            whole[part] = values
    return found


def _compare_rows(
    z: Float[Tensor, "n classes"], w: Float[Tensor, "n classes"], targets: Int[Tensor, "n 1"], p: Tensor, a: Tensor
) -> Comparison:
    """The same for a few rows; `p` and `a` are overwritten."""
    torch.log_softmax(z, -1, out=p)
    reference_nats = -p.gather(-1, targets)[:, 0].double()
    p.exp_()
    torch.sub(z, w, out=a)
    # Σ p is 1 up to rounding, and a shift of all logits would be multiplied by that error; it is taken off first.
    a -= _row_dot(p, a)[:, None]
    a -= _row_dot(p, a)[:, None]
    largest, at_target = -a.amin(-1), a.gather(-1, targets)[:, 0].double()
    kl = _row_dot(p, a.neg_().expm1_()).double().log1p_()
    nats = reference_nats + at_target + kl
    for row in (largest > LARGEST).nonzero()[:, 0].tolist():
        precise = z[row : row + 1].double(), w[row : row + 1].double()
        kl[row] = CATEGORICAL.divergence(*precise)[0]
        nats[row] = -precise[1].log_softmax(-1)[0, targets[row, 0]]
    same = ((z == z.amax(-1, keepdim=True)) & (w == w.amax(-1, keepdim=True))).any(-1)
    return Comparison(kl.clamp_(min=0), reference_nats, nats, same)


def negative_log_likelihood(z: Float[Tensor, "n classes"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """−log softmax(z) at the target of each row, in nats and in float64.

    Args:
        z: finite logits.
        targets: the class of each row.

    Example:
        >>> negative_log_likelihood(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931], dtype=torch.float64)
    """
    largest = z.amax(-1, keepdim=True)
    rows = _rows_at_a_time(z)
    sums, terms = [], z.new_empty(min(rows, len(z)), z.shape[1])
    for part, most in zip(z.split(rows), largest.split(rows), strict=True):
        sums.append(torch.sub(part, most, out=terms[: len(part)]).exp_().sum(-1))
    target = z.gather(-1, targets[:, None])[:, 0]
    return (largest[:, 0] - target).double() + torch.cat(sums).double().log()


def _rows_at_a_time(z: Float[Tensor, "n classes"]) -> int:
    """The number of rows that are compared at a time."""
    return max(1, ELEMENTS // max(1, z.shape[1]))


def _row_dot(x: Float[Tensor, "n k"], y: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The scalar product of each pair of rows, without a tensor of their products."""
    return torch.bmm(x[:, None, :], y[:, :, None])[:, 0, 0]
