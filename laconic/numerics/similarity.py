"""How alike two representations of the same rows are, whatever rotation and scale they come in.

S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, eq. 4: CKA(K, L) =
HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with the linear kernels K = X Xᵀ and L = Y Yᵀ. HSIC is the unbiased estimate of
L. Song et al., JMLR 2012, eq. 5: with fewer rows than features the usual one calls everything alike (T. Nguyen et al.,
ICLR 2021).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def cka(representations: Sequence[Float[Tensor, "rows _"]]) -> Float[Tensor, "k k"]:
    """The similarity of each with each, 1 for the same up to rotation and scale, about 0 for unrelated ones.

    Raises:
        ValueError: fewer than four rows, of which nothing can be said.
    """
    n = len(representations[0])
    if n < 4:
        raise ValueError(f"the similarity of representations needs at least 4 rows; got {n}")
    kernels = torch.stack([_kernel(X) for X in representations])
    sums = kernels.sum(2)
    totals = sums.sum(1)
    flat = kernels.flatten(1)
    hsic = flat @ flat.T + torch.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums @ sums.T)
    # The factor 1 / (n (n − 3)) cancels. A representation that does not vary is like nothing.
    scale = hsic.diagonal().clamp(min=0).sqrt()
    product = torch.outer(scale, scale)
    return torch.where(product > 0, hsic / product.clamp(min=torch.finfo(torch.float64).tiny), 0).clamp(-1, 1)


def _kernel(X: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """X Xᵀ of the centred X without its diagonal, in fp64."""
    X = X.double()
    # The unbiased estimate does not change with the mean; rounding does.
    X = X - X.mean(0)
    K = X @ X.T
    return K - K.diagonal().diag_embed()
