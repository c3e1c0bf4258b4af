"""The best few coordinates for a product of two vectors: how an attention head is made narrower.

Chen, Yu, Dhillon & Hsieh, "DRONE: Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021, the part on
attention. A head of size d sees its queries and keys only in q^T k, and its values only in W_O v. With C_q = E[q q^T]
and C_k = E[k k^T], over queries and keys that are paired at random,

    E (q^T k − q^T M k)² = ‖C_q^{1/2} (I − M) C_k^{1/2}‖_F²,

and M = A B of rank r splits into q' = A^T q and k' = B k, of size r each. In the same way, over contexts z,

    E ‖W_O z − W_O M z‖² = ‖(W_O^T W_O)^{1/2} (I − M) E[z z^T]^{1/2}‖_F²,

and W_O' = W_O A, v' = B v: both are the low-rank approximation of the identity between two moments.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.lowrank import Components, balanced
from laconic.numerics.psd import RELATIVE_FLOOR, shrink, square_root


def identity_components(F: Float[Tensor, "d d"], C: Float[Tensor, "d d"]) -> Components:
    """I ≈ A B, whose first r terms are the best rank r in ‖F^{1/2} (I − A B) C^{1/2}‖_F, for every r at once.

    With P = F^{1/2}, R = C^{1/2} and P R = Σ σ_i u_i v_i^T the optimum is P^{-1} (Σ_{i≤r} σ_i u_i v_i^T) R^{-1}. As
    P^{-1} U = R V Σ^{-1} and R^{-1} V = P U Σ^{-1}, it is A = R V Σ^{-1/2}, B = Σ^{-1/2} U^T P: no moment is inverted,
    and both may be singular. Terms beyond the numerical rank of P R are zero; an all-zero moment counts as the
    identity.
    """
    P, R = square_root(shrink(F, 0.0)), square_root(shrink(C, 0.0))
    U, s, Vt = torch.linalg.svd(P @ R)
    # σ is a square root of eigenvalues, so their floor is rooted too.
    floor = RELATIVE_FLOOR**0.5 * s[0]
    inverse_root = torch.where(s > floor, s.clamp(min=torch.finfo(s.dtype).tiny).rsqrt(), 0.0)
    return balanced(Components(R @ Vt.T * inverse_root, inverse_root[:, None] * (U.T @ P)))


def affine_moment(
    W: Float[Tensor, "out in"], b: Float[Tensor, " out"] | None, C: Float[Tensor, "in in"], mean: Float[Tensor, " in"]
) -> Float[Tensor, "out out"]:
    """E[y y^T] of y = W x + b, from C = E[x x^T] and E[x]."""
    W, C = W.double(), C.double()
    moment = W @ C @ W.T
    if b is None:
        return moment
    b, Wm = b.double(), W @ mean.double()
    return moment + torch.outer(Wm, b) + torch.outer(b, Wm) + torch.outer(b, b)
