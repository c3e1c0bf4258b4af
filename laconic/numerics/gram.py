"""Sums of products X^T X of rows: symmetric, so that half of them is enough.

Notation: X (rows, n), its rows the inputs of a layer or gradients at its outputs; totals (n, n).
"""

from jaxtyping import Float
from torch import Tensor

from laconic.numerics.products import product

GRAM_BLOCK = 256
"""Wide enough for products at full speed, narrow enough to save nearly half of the work."""
ROWS = 2048
"""Rows that are transposed at once. oneDNN multiplies rows that are contiguous much faster than columns."""


def add_gram(total: Float[Tensor, "n n"], X: Float[Tensor, "rows n"]) -> None:
    """Add X^T X to the upper triangle of `total`, in blocks, which is half the work of the full product.

    Args:
        total: the sum, changed in place; its lower triangle has no meaning (`symmetrize`).
        X: rows; products are computed in its dtype, and added in the dtype of `total`.

    Example:
        >>> import torch
        >>> total = torch.zeros(2, 2)
        >>> add_gram(total, torch.tensor([[1.0, 2.0]]))
        >>> symmetrize(total)
        tensor([[1., 2.],
                [2., 4.]])
    """
    for rows in X.split(ROWS):
        Xt = rows.T.contiguous()
        for start in range(0, len(Xt), GRAM_BLOCK):
            block = slice(start, start + GRAM_BLOCK)
            total[block, start:] += product(Xt[block], Xt[start:].T)


def symmetrize(upper: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The symmetric matrix whose upper triangle is that of `upper`.

    Example:
        >>> import torch
        >>> symmetrize(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        tensor([[1., 2.],
                [2., 3.]])
    """
    return mirror(upper.clone())


def mirror(S: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Copy the upper triangle of S to the lower one, block by block, so that no second matrix is made."""
    for start in range(0, len(S), GRAM_BLOCK):
        rows, below = slice(start, start + GRAM_BLOCK), slice(start + GRAM_BLOCK, None)
        S[below, rows] = S[rows, below].T
        corner = S[rows, rows]
        corner.copy_(corner.triu() + corner.triu(1).T)
    return S
