"""KL divergence between softmaxes over many classes, in float32 without loss by cancellation.

With logits z of the reference and w of another model, p = softmax(z), a = z − w and m = Σ p a:

    KL(p ‖ softmax(w)) = log Σ p exp(m − a) = log1p(Σ p expm1(m − a))

The direct form Σ p (log p − log q) subtracts two sums over all classes, each with a rounding error near 1e-6 in
float32, which is as large as the divergence of similar models. Here all terms are differences of the logits, which are
small where the models are similar. Where m − a is too large for float32, the row is computed in float64.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic.numerics.distributions import CATEGORICAL

ROWS = 16
"""The number of rows that are computed at a time."""
LARGEST = 60.0
"""The largest exponent that is computed in float32, where exp overflows above 88."""


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
    kl = torch.empty(len(z), dtype=torch.float64, device=z.device)
    # New memory for each tensor of this size would take longer than the arithmetic.
    p, a = z.new_empty(min(ROWS, len(z)), z.shape[1]), z.new_empty(min(ROWS, len(z)), z.shape[1])
    for rows in torch.arange(len(z)).split(ROWS):
        part, n = slice(int(rows[0]), int(rows[-1]) + 1), len(rows)
        kl[part] = _block_kl(z[part], w[part], p[:n], a[:n])
    return kl


def _block_kl(
    z: Float[Tensor, "n classes"], w: Float[Tensor, "n classes"], p: Float[Tensor, "n classes"], a: Tensor
) -> Float[Tensor, " n"]:
    """The same for a few rows; `p` and `a` are overwritten."""
    torch.log_softmax(z, -1, out=p)
    p.exp_()
    torch.sub(z, w, out=a)
    # Σ p is 1 up to rounding, and a shift of all logits would be multiplied by that error; it is taken off first.
    a -= _row_dot(p, a)[:, None]
    a -= _row_dot(p, a)[:, None]
    largest = -a.amin(-1)
    kl = _row_dot(p, a.neg_().expm1_()).double().log1p_()
    for row in (largest > LARGEST).nonzero()[:, 0].tolist():
        kl[row] = CATEGORICAL.divergence(z[row : row + 1].double(), w[row : row + 1].double())[0]
    return kl.clamp_(min=0)


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
    sums, terms = [], z.new_empty(min(ROWS, len(z)), z.shape[1])
    for part, most in zip(z.split(ROWS), largest.split(ROWS), strict=True):
        sums.append(torch.sub(part, most, out=terms[: len(part)]).exp_().sum(-1))
    target = z.gather(-1, targets[:, None])[:, 0]
    return (largest[:, 0] - target).double() + torch.cat(sums).double().log()


def _row_dot(x: Float[Tensor, "n k"], y: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The scalar product of each pair of rows, without a tensor of their products."""
    return torch.bmm(x[:, None, :], y[:, :, None])[:, 0, 0]
