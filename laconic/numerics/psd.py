"""Symmetric positive semi-definite matrices: shrinkage, roots, products. Everything in fp64.

Notation: S is a second moment, E[v v^T], either full, (n, n), or only its diagonal, (n,). The diagonal form serves
vocabularies: the input of an embedding is one-hot, so its moment *is* diagonal, and that of the gradient at a
50,000-way head does not fit in memory in full.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Moment = Float[Tensor, "n n"] | Float[Tensor, " n"]
InputMoment = Float[Tensor, "in in"] | Float[Tensor, " in"]
OutputMoment = Float[Tensor, "out out"] | Float[Tensor, " out"]

# Eigenvalues below this fraction of the largest are rounding noise of an fp64 `eigh`.
RELATIVE_FLOOR = 1e-12

# Wide enough for a matrix product to run at full speed, narrow enough to save nearly half of it.
GRAM_BLOCK = 256


def shrink(S: Moment, alpha: float) -> Moment:
    """(1 − α) S + α mean(diag S) I: the usual remedy for a moment estimated from few samples.

    An all-zero S becomes the identity, so that a dead layer is compressed by its weights alone.
    """
    S = S.double()
    diagonal = S if S.ndim == 1 else S.diagonal()
    level = diagonal.mean()
    if level <= 0:
        return torch.ones_like(S) if S.ndim == 1 else torch.eye(len(S), dtype=S.dtype, device=S.device)
    shrunk = (1 - alpha) * S
    if S.ndim == 1:
        return shrunk + alpha * level
    shrunk.diagonal().add_(alpha * level)
    return shrunk


def add_gram(total: Float[Tensor, "n n"], X: Float[Tensor, "rows n"]) -> None:
    """Add X^T X to `total`, on and above the diagonal alone, block by block: half of the work of the full product.

    Products are in the precision of X, sums in that of `total`; `mirrored` makes the symmetric matrix of it.
    """
    n = X.shape[1]
    for start in range(0, n, GRAM_BLOCK):
        block = slice(start, start + GRAM_BLOCK)
        total[block, start:] += X[:, block].T @ X[:, start:]


def mirrored(upper: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The symmetric matrix whose upper triangle `upper` holds; what lies below its diagonal is ignored."""
    return upper.triu() + upper.triu(1).T


def times(S: Moment, X: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """S X, for a full or a diagonal S."""
    return S[:, None] * X if S.ndim == 1 else S @ X


def roots(S: Moment, floor: float = RELATIVE_FLOOR) -> tuple[Moment, Moment]:
    """S^{1/2} and S^{-1/2} by `eigh`, eigenvalues raised to `floor` times the largest so that both exist."""
    S = S.double()
    if S.ndim == 1:
        raised = S.clamp(min=max(floor * S.max().item(), torch.finfo(S.dtype).tiny))
        return raised.sqrt(), raised.rsqrt()
    values, vectors = eigh(S)
    raised = values.clamp(min=max(floor * values[0].item(), torch.finfo(S.dtype).tiny))
    return (vectors * raised.sqrt()) @ vectors.T, (vectors * raised.rsqrt()) @ vectors.T


def square_root(S: Moment) -> Moment:
    """S^{1/2}; negative eigenvalues, which are rounding noise, count as zero."""
    S = S.double()
    if S.ndim == 1:
        return S.clamp(min=0).sqrt()
    values, vectors = eigh(S)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def root_factor(S: Moment) -> Moment:
    """Lower triangular L with S = L L^T (Cholesky): cheaper than a symmetric root, and as good within a norm.

    A singular S is raised by the least multiple of the identity, from `RELATIVE_FLOOR` of its mean on, that lets it be
    factored.
    """
    S = S.double()
    if S.ndim == 1:
        return S.clamp(min=RELATIVE_FLOOR * S.mean().item()).sqrt()
    L, failed = torch.linalg.cholesky_ex(S)
    jitter = (RELATIVE_FLOOR * S.diagonal().mean()).clamp(min=torch.finfo(S.dtype).tiny)
    while failed and jitter.isfinite():
        L, failed = torch.linalg.cholesky_ex(S + jitter * torch.eye(len(S), dtype=S.dtype, device=S.device))
        jitter = 10 * jitter
    return L


def eigh(S: Float[Tensor, "n n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Eigenvalues in descending order and their eigenvectors as columns; symmetrises S first."""
    values, vectors = torch.linalg.eigh((S + S.T) / 2)
    return values.flip(0), vectors.flip(1)
