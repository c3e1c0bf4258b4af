"""Figures about weights and representations: magnitudes of entries, singular values, similarity of representations.

Magnitudes are counted in a hundred classes for each factor of ten. Counts add up over matrices, so only one matrix has
to be in memory at a time. They are exact at powers of ten, and within 1.2 % of a magnitude elsewhere.

Effective rank: O. Roy & M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, eq. 4:
exp H(p) with p_i = σ_i / Σσ, H the entropy in nats. It is k for k equal singular values and 1 for a matrix of rank one.

CKA: S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, eq. 4: CKA(K, L) =
HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with the linear kernels K = X Xᵀ and L = Y Yᵀ. HSIC is the unbiased estimate of
L. Song et al., JMLR 2012, eq. 5; with fewer rows than features the biased one calls everything similar (T. Nguyen et
al., ICLR 2021).

Notation: W (m, n) a matrix with entries w and singular values σ (`s` in the code); X and Y (rows, features) hidden
states on the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.moments import RELATIVE_FLOOR

PER_DECADE = 100
SMALLEST, LARGEST = -10, 4
"""Powers of ten where the classes begin and end; the outermost classes are open."""
CHUNK = 2**22
"""Entries that are processed at a time."""


@cache
def _edges(device: torch.device) -> Float[Tensor, " edges"]:
    # Python's powers of ten equal its literals; torch's may differ in the last digit.
    exponents = range(SMALLEST * PER_DECADE, LARGEST * PER_DECADE + 1)
    return torch.tensor([10.0 ** (k / PER_DECADE) for k in exponents], dtype=torch.float64, device=device)


@dataclass(frozen=True)
class Magnitudes:
    """Statistics of the entries w of one or more matrices; they add up by `+`.

    Args:
        zeros: number of entries that are exactly zero.
        counts: number of other entries by class of |w|.
        sums: sum of |w| by class.
        powers: Σw, Σw², Σw³ and Σw⁴.
        largest: largest |w|.

    Example:
        >>> found = Magnitudes.measure(torch.tensor([0.0, 1.0, -3.0]))
        >>> found.number, found.largest, round(found.at_least(1.0), 4)
        (3, 3.0, 0.6667)
    """

    zeros: int
    counts: Float[Tensor, " classes"]
    sums: Float[Tensor, " classes"]
    powers: Float[Tensor, " 4"]
    largest: float

    @classmethod
    def measure(cls, W: Tensor) -> "Magnitudes":
        """The statistics of one tensor, in fp64, chunk by chunk."""
        edges = _edges(W.device)
        zeros, largest = 0, 0.0
        counts, sums = torch.zeros(len(edges) + 1, dtype=torch.float64), torch.zeros(len(edges) + 1).double()
        powers = torch.zeros(4, dtype=torch.float64)
        for part in W.detach().reshape(-1).split(CHUNK):
            w = part.double()
            sizes = w.abs()
            places = torch.bucketize(sizes[sizes > 0], edges, right=True)
            zeros += int((sizes == 0).sum())
            counts += torch.bincount(places, minlength=len(counts)).cpu()
            sums += torch.bincount(places, weights=sizes[sizes > 0], minlength=len(counts)).cpu()
            powers += torch.stack([w.pow(power).sum() for power in (1, 2, 3, 4)]).cpu()
            largest = max(largest, float(sizes.max()) if len(sizes) else 0.0)
        return cls(zeros, counts, sums, powers, largest)

    def __add__(self, other: "Magnitudes") -> "Magnitudes":
        return Magnitudes(
            self.zeros + other.zeros,
            self.counts + other.counts,
            self.sums + other.sums,
            self.powers + other.powers,
            max(self.largest, other.largest),
        )

    @property
    def number(self) -> int:
        """Number of entries."""
        return self.zeros + int(self.counts.sum())

    @property
    def mean(self) -> float:
        return float(self.powers[0]) / max(self.number, 1)

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return max(float(self.powers[1]) / max(self.number, 1) - self.mean**2, 0.0) ** 0.5

    @property
    def kurtosis(self) -> float | None:
        """E[(w − μ)⁴] / σ⁴: 3 for a Gaussian, more with outliers; None if all entries are equal."""
        if self.deviation == 0:
            return None
        m1, m2, m3, m4 = (self.powers / self.number).tolist()
        return (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / self.deviation**4

    def at_least(self, threshold: float) -> float:
        """The fraction of entries with |w| ≥ `threshold`; exact at a power of ten."""
        first = int(
            torch.bucketize(torch.tensor(threshold, dtype=torch.float64), _edges(self.counts.device), right=True)
        )
        return float(self.counts[first:].sum()) / max(self.number, 1)

    def quantile(self, fraction: float) -> float:
        """The magnitude below which a fraction of the entries lies."""
        below = (self.counts.cumsum(0) + self.zeros) / max(self.number, 1)
        reached = int((below < fraction).sum())
        if fraction * self.number <= self.zeros or reached >= len(self.counts):
            return 0.0 if fraction * self.number <= self.zeros else self.largest
        return float(self.sums[reached] / self.counts[reached])

    def top_share(self, fraction: float) -> float:
        """The share of Σ|w| that the largest `fraction` of the entries has."""
        target = fraction * self.number
        counts, sums = self.counts.flip(0), self.sums.flip(0)
        # In the class where the count is reached, the remaining entries count the mean of the class.
        taken = (target - (counts.cumsum(0) - counts)).clamp(min=0).minimum(counts)
        largest_sum = (sums * taken / counts.clamp(min=1)).sum()
        return float(largest_sum / self.sums.sum().clamp(min=torch.finfo(torch.float64).tiny))

    def histogram(self, per_decade: int = 10) -> tuple[list[float], list[float]]:
        """The lower bounds of wider classes, and the fraction of all entries in each; zeros belong to no class."""
        wide = self.counts[1:-1].reshape(-1, PER_DECADE // per_decade).sum(1) / max(self.number, 1)
        wide[0] += self.counts[0] / max(self.number, 1)
        wide[-1] += self.counts[-1] / max(self.number, 1)
        begins = [10 ** (SMALLEST + at / per_decade) for at in range(len(wide))]
        return begins, wide.tolist()


ROWS = 4096
"""Rows that are multiplied at a time."""


def singular_values(W: Float[Tensor, "out in"]) -> Float[Tensor, " k"]:
    """All min(out, in) singular values, descending, in fp64.

    They are roots of the eigenvalues of the smaller of W Wᵀ and Wᵀ W. Those below 10⁻⁶ of the largest, where squaring
    leaves noise, are returned as zero.

    Example:
        >>> singular_values(torch.diag(torch.tensor([1.0, 2.0])))
        tensor([2., 1.], dtype=torch.float64)
    """
    tall = W.detach() if W.shape[0] >= W.shape[1] else W.detach().T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=W.device)
    for rows in tall.split(ROWS):
        part = rows.double()
        gram += part.T @ part
    squares = torch.linalg.eigvalsh(gram).flip(0)
    return torch.where(squares > RELATIVE_FLOOR * squares[0], squares, 0).clamp(min=0).sqrt()


def effective_rank(s: Float[Tensor, " k"]) -> float:
    """exp H(σ / Σσ); 0 for a matrix of zeros.

    Args:
        s: singular values.

    Example:
        >>> round(effective_rank(torch.tensor([1.0, 1.0, 0.0])), 4)
        2.0
    """
    if not s.any():
        return 0.0
    p = s / s.sum()
    return float(torch.special.entr(p).sum().exp())


def energy_rank(s: Float[Tensor, " k"], energy: float) -> int:
    """The smallest rank whose singular values have a fraction of Σσ²; 0 for a matrix of zeros.

    Args:
        s: singular values, descending.
        energy: the fraction.

    Example:
        >>> energy_rank(torch.tensor([3.0, 1.0]), energy=0.9)
        1
    """
    squares = s.square()
    if not s.any():
        return 0
    fractions = squares.cumsum(0) / squares.sum()
    # Rounding must not give a rank above the number of singular values.
    return min(int((fractions < energy - 1e-12).sum()) + 1, len(s))


def cka(representations: Sequence[Float[Tensor, "rows _"]]) -> Float[Tensor, "k k"]:
    """The similarity of each pair of representations: 1 if equal up to rotation and scale, about 0 if unrelated.

    Args:
        representations: (rows, features) each, of the same rows.

    Raises:
        ValueError: fewer than four rows.

    Example:
        >>> X = torch.eye(5)
        >>> cka([X, 2 * X]).round(decimals=4)
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)
    """
    n = len(representations[0])
    if n < 4:
        raise ValueError(f"the similarity of representations needs at least 4 rows; got {n}")
    kernels = torch.stack([_kernel(X) for X in representations])
    sums = kernels.sum(2)
    totals = sums.sum(1)
    flat = kernels.flatten(1)
    hsic = flat @ flat.T + torch.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums @ sums.T)
    # The factor 1 / (n (n − 3)) cancels. A constant representation has similarity 0 with all others.
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
