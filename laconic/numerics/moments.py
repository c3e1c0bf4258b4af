"""Second moments S = E[v v^T]: shrinkage, roots and products; and the quadratic loss that they define. All in fp64.

A moment is full, (n, n), or only its diagonal, (n,). The diagonal form is for vocabularies: the input of an embedding
is one-hot, so its moment is diagonal, and that of the gradient at a head of 50,000 classes does not fit into memory.

With E = W − Ŵ, C = E[x x^T] over a layer's inputs and F = Σ g g^T / predictions over the gradients at its outputs, the
K-FAC factorisation of the Hessian of KL(dense ‖ compressed) (Martens & Grosse, arXiv 1503.05671) gives

    ΔKL ≈ ½ vec(E)^T (F ⊗ C) vec(E) = ½ tr(F E C E^T)    nats per prediction,

the loss by which sizes of different methods are compared.

Notation: W (m, n) with m = out, n = in, Ŵ its approximation; C (n, n), F (m, m), and S (n, n) any moment; x (n,) inputs
and g (m,) gradients; A (m, k) and B (k, n) factors with columns a_i and rows b_i.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.errors import UserError
from laconic.numerics.gram import GRAM_BLOCK, mirror

Moment = Float[Tensor, "n n"] | Float[Tensor, " n"]
InputMoment = Float[Tensor, "in in"] | Float[Tensor, " in"]
OutputMoment = Float[Tensor, "out out"] | Float[Tensor, " out"]

# Eigenvalues below this fraction of the largest are rounding noise of an fp64 `eigh`.
RELATIVE_FLOOR = 1e-12


def shrink(S: Moment, alpha: float) -> Moment:
    """(1 − α) S + α mean(diag S) I, for a moment that is estimated from few samples.

    Args:
        S: a moment.
        alpha: α in [0, 1].

    Returns:
        The moment in fp64; the identity if S is all zero, so that a layer without gradients is compressed by its
        weights.

    Example:
        >>> shrink(torch.tensor([1.0, 3.0]), 0.5)
        tensor([1.5000, 2.5000], dtype=torch.float64)
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


def unit_diagonal(
    S: Float[Tensor, "n n"], dtype: torch.dtype = torch.float32, diagonal: Float[Tensor, " n"] | None = None
) -> Float[Tensor, "n n"]:
    """S with its rows and columns scaled to a diagonal of ones: the correlations of uncentred features.

    Args:
        S: a moment in fp64, of which only the upper triangle is read.
        dtype: of the result.
        diagonal: its diagonal, positive, if it is another than that of S.

    Example:
        >>> unit_diagonal(torch.tensor([[4.0, 1.0], [1.0, 1.0]]).double())
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    scale = (S.diagonal() if diagonal is None else diagonal).rsqrt()
    scaled = torch.empty_like(S, dtype=dtype)
    # Block by block, so that there is no second copy in fp64.
    for start in range(0, len(S), GRAM_BLOCK):
        rows, right = slice(start, start + GRAM_BLOCK), slice(start, None)
        scaled[rows, right] = (S[rows, right] * scale[rows, None]).mul_(scale[right])
    return mirror(scaled).fill_diagonal_(1)


def multiply(S: Moment, X: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """S X, for a full or a diagonal S.

    Example:
        >>> multiply(torch.tensor([1.0, 2.0]), torch.ones(2, 2))
        tensor([[1., 1.],
                [2., 2.]])
    """
    return S[:, None] * X if S.ndim == 1 else S @ X


def square_roots(S: Moment, floor: float = RELATIVE_FLOOR) -> tuple[Moment, Moment]:
    """S^{1/2} and S^{-1/2}, both symmetric.

    Args:
        S: a moment.
        floor: eigenvalues are raised to this fraction of the largest, so that the inverse exists.

    Example:
        >>> square_roots(torch.tensor([4.0, 1.0]))
        (tensor([2., 1.], dtype=torch.float64), tensor([0.5000, 1.0000], dtype=torch.float64))
    """
    S = S.double()
    if S.ndim == 1:
        raised = S.clamp(min=max(floor * S.max().item(), torch.finfo(S.dtype).tiny))
        return raised.sqrt(), raised.rsqrt()
    values, vectors = eigh(S)
    raised = values.clamp(min=max(floor * values[0].item(), torch.finfo(S.dtype).tiny))
    return (vectors * raised.sqrt()) @ vectors.T, (vectors * raised.rsqrt()) @ vectors.T


def square_root(S: Moment) -> Moment:
    """S^{1/2}, symmetric; negative eigenvalues, which are rounding errors, count as zero.

    Example:
        >>> square_root(torch.diag(torch.tensor([4.0, 0.0]))).tolist()
        [[2.0, 0.0], [0.0, 0.0]]
    """
    S = S.double()
    if S.ndim == 1:
        return S.clamp(min=0).sqrt()
    values, vectors = eigh(S)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def root_factor(S: Moment) -> Moment:
    """The Cholesky factor of a moment: lower triangular L with S = L L^T.

    A singular S is raised by the least multiple of the identity that lets it be factored, from RELATIVE_FLOOR times its
    mean diagonal on.

    Args:
        S: a moment; a diagonal one gives √S.

    Example:
        >>> root_factor(torch.tensor([[4.0, 2.0], [2.0, 2.0]]))
        tensor([[2., 0.],
                [1., 1.]], dtype=torch.float64)
    """
    S = S.double()
    if S.ndim == 1:
        return S.clamp(min=RELATIVE_FLOOR * S.mean().item()).sqrt()
    L, failed = torch.linalg.cholesky_ex(S)
    jitter = (RELATIVE_FLOOR * S.diagonal().mean()).clamp(min=torch.finfo(S.dtype).tiny)
    while failed and jitter.isfinite():
        raised = S.clone()
        raised.diagonal().add_(jitter)
        L, failed = torch.linalg.cholesky_ex(raised)
        jitter = 10 * jitter
    return L


def eigh(S: Float[Tensor, "n n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Eigenvalues in descending order, and eigenvectors as columns.

    Args:
        S: a matrix, which is symmetrised first.

    Example:
        >>> eigh(torch.diag(torch.tensor([1.0, 3.0])))[0]
        tensor([3., 1.])
    """
    values, vectors = torch.linalg.eigh((S + S.T).div_(2))
    return values.flip(0), vectors.flip(1)


def quadratic_loss(E: Float[Tensor, "out in"], F: OutputMoment, C: InputMoment) -> float:
    """½ tr(F E C E^T), in nats per prediction.

    Args:
        E: the error W − Ŵ.
        F: moment of the gradients at the outputs; the identity gives half the squared error of the outputs.
        C: moment of the inputs.

    Example:
        >>> quadratic_loss(torch.ones(2, 2), torch.ones(2), torch.ones(2))
        2.0
    """
    E = E.double()
    return 0.5 * (multiply(F.double(), E) * multiply(C.double(), E.T).T).sum().item()


def truncation_losses(
    A: Float[Tensor, "out k"], B: Float[Tensor, "k in"], F: OutputMoment, C: InputMoment
) -> Float[Tensor, " k+1"]:
    """The losses ½ tr(F E_r C E_r^T) of keeping the first r terms of W = Σ_i a_i b_i^T, for every r at once.

    E_r = Σ_{i>r} a_i b_i^T, so the loss is ½ Σ_{i,j>r} (a_i^T F a_j)(b_i^T C b_j): the sum over the trailing block of
    one k × k matrix.

    Args:
        A: columns a_i.
        B: rows b_i.
        F: moment of the gradients at the outputs.
        C: moment of the inputs.

    Returns:
        The loss for r = 0, …, k.

    Example:
        >>> truncation_losses(torch.eye(2), torch.diag(torch.tensor([2.0, 1.0])), torch.ones(2), torch.ones(2))
        tensor([2.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    A, B = A.double(), B.double()
    K = (A.T @ multiply(F.double(), A)) * (B @ multiply(C.double(), B.T))
    # Adding index r to the trailing block brings in one row, one column and the corner.
    added = 2 * K.triu(1).sum(dim=1) + K.diagonal()
    trailing = added.flip(0).cumsum(0).flip(0)
    losses = 0.5 * torch.cat([trailing, trailing.new_zeros(1)])
    return losses.clamp(min=0)


def floored_diagonal(S: Moment) -> Float[Tensor, " n"]:
    """diag S in fp64, raised to RELATIVE_FLOOR times its mean.

    The weights of a feature that was never active then have very low scores, which still grow with the weight. If the
    moment is all zero, all features count the same.

    Args:
        S: a moment.

    Example:
        >>> floored_diagonal(torch.tensor([2.0, 0.0])).tolist()
        [2.0, 1e-12]
    """
    S = shrink(S, 0.0)
    diagonal = S if S.ndim == 1 else S.diagonal()
    return diagonal.clamp(min=RELATIVE_FLOOR * diagonal.mean().item())


def active_inputs(C: InputMoment) -> Float[Tensor, " in"]:
    """1 for inputs that were active, RELATIVE_FLOOR for the others. A damped moment no longer tells them apart.

    Args:
        C: moment of the inputs; if it is all zero, the result is 1.

    Example:
        >>> active_inputs(torch.tensor([2.0, 0.0]))
        tensor([1.0000e+00, 1.0000e-12], dtype=torch.float64)
    """
    C = shrink(C, 0.0)
    active = (C if C.ndim == 1 else C.diagonal()) > 0
    return torch.where(active, 1.0, RELATIVE_FLOOR).double()


def check_finite(values: Tensor, sentence: str) -> None:
    """Check that no value is NaN or infinite.

    Args:
        values: any tensor.
        sentence: the message of the error.

    Raises:
        UserError: a value is NaN or infinite.

    Example:
        >>> check_finite(torch.tensor([1.0, float("inf")]), "The weights of 'fc' are not finite.")
        Traceback (most recent call last):
        laconic.errors.UserError: The weights of 'fc' are not finite.
    """
    # A sum is finite only if every value is, and takes one pass. The sum of finite values may overflow.
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise UserError(sentence)
