"""The one loss that ranks every option of every method on one scale.

With E = W − Ŵ, C = E[x x^T] over a layer's inputs and F = Σ g g^T / predictions over the gradients at its outputs,
the K-FAC factorisation of the Hessian of KL(dense ‖ compressed) (Martens & Grosse, arXiv 1503.05671) gives

    ΔKL ≈ ½ vec(E)^T (F ⊗ C) vec(E) = ½ tr(F E C E^T)    nats per prediction.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.psd import InputMoment, OutputMoment, times


def quadratic_loss(E: Float[Tensor, "out in"], F: OutputMoment, C: InputMoment) -> float:
    """½ tr(F E C E^T). With F = I this is half the squared error at the layer's output."""
    E = E.double()
    return 0.5 * (times(F.double(), E) * times(C.double(), E.T).T).sum().item()


def truncation_losses(
    A: Float[Tensor, "out k"], B: Float[Tensor, "k in"], F: OutputMoment, C: InputMoment
) -> Float[Tensor, " k+1"]:
    """The loss of keeping the first r of W = Σ_i a_i b_i^T, for every r = 0 … k at once.

    E_r = Σ_{i>r} a_i b_i^T, so ½ tr(F E_r C E_r^T) = ½ Σ_{i,j>r} (a_i^T F a_j)(b_i^T C b_j): the sum of one k × k
    matrix over its trailing blocks.
    """
    A, B = A.double(), B.double()
    K = (A.T @ times(F.double(), A)) * (B @ times(C.double(), B.T))
    # Adding index r to the trailing block brings in one row, one column and the corner.
    added = 2 * K.triu(1).sum(dim=1) + K.diagonal()
    trailing = added.flip(0).cumsum(0).flip(0)
    losses = 0.5 * torch.cat([trailing, trailing.new_zeros(1)])
    return losses.clamp(min=0)
