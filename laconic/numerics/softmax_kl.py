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
    p = (z - z.logsumexp(-1, keepdim=True)).exp_()
    a = z - w
    # Σ p is 1 up to rounding, and a shift of all logits would be multiplied by that error; it is taken off first.
    a -= _row_dot(p, a)[:, None]
    exponent = _row_dot(p, a)[:, None] - a
    largest = exponent.amax(-1)
    kl = _row_dot(p, exponent.expm1_()).double().log1p_()
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
    return z.logsumexp(-1).double() - z.gather(-1, targets[:, None])[:, 0].double()


def _row_dot(x: Float[Tensor, "n k"], y: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The scalar product of each pair of rows, without a tensor of their products."""
    return torch.bmm(x[:, None, :], y[:, :, None])[:, 0, 0]
