"""What is left of an input that is predicted from the others, where some of these are missing.

Of the others each is missing with probability s, and counts 1 / (1 − s) times where it is not. Their second moment is
then H + γ diag H in expectation, γ = s / (1 − s), as in dropout (S. Wager, S. Wang, P. Liang, "Dropout Training as
Adaptive Regularization", NeurIPS 2013), while that with the input itself is as before. So the least expected square of
what is left of input j is the Schur complement

    v_j = H_jj − H_jo (H_oo + γ diag H_oo)^{-1} H_oj = 1 / [(H + γ diag H)^{-1}]_jj − γ H_jj,    o: all but j.

It rises with s from 1 / [H^{-1}]_jj, all others there, to H_jj, none.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.psd import RELATIVE_FLOOR, InputMoment
from laconic.numerics.refit import inverse


def unexplained(H: InputMoment, missing: float) -> Float[Tensor, " in"]:
    """v of a positive definite H, for s = `missing` in [0, 1)."""
    if H.ndim == 1:
        return H
    diagonal = H.diagonal()
    gamma = missing / (1 - missing)
    left = 1 / inverse(H + torch.diag(gamma * diagonal)).diagonal() - gamma * diagonal
    # The difference of two large numbers where almost all are missing.
    return left.clamp(min=RELATIVE_FLOOR * diagonal.mean().item())
