"""How large the entries of matrices are: counts and sums by magnitude, which add up over parts and over matrices.

Magnitudes are sorted into a hundred classes for each factor of ten, so whatever is asked of many matrices together,
of which only one is ever held, is exact at the powers of ten and within 1.2 % of a magnitude elsewhere.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PER_DECADE = 100
SMALLEST, LARGEST = -10, 4
"""Powers of ten that the classes begin and end with; what is beyond is in the outermost ones."""
CHUNK = 2**22
"""Entries that are looked at together."""


def _edges(device: torch.device) -> Float[Tensor, " edges"]:
    # Python's powers of ten are those that its literals are; torch's may be off by the last digit.
    exponents = range(SMALLEST * PER_DECADE, LARGEST * PER_DECADE + 1)
    return torch.tensor([10.0 ** (k / PER_DECADE) for k in exponents], dtype=torch.float64, device=device)


@dataclass(frozen=True)
class Magnitudes:
    """What is known of the entries w of some matrices together.

    zeros:   how many are exactly zero.
    counts:  others, by the class of |w|.
    sums:    of |w|, by class.
    powers:  Σw, Σw², Σw³ and Σw⁴.
    largest: the greatest |w|.
    """

    zeros: int
    counts: Float[Tensor, " classes"]
    sums: Float[Tensor, " classes"]
    powers: Float[Tensor, " 4"]
    largest: float

    @classmethod
    def of(cls, W: Tensor) -> "Magnitudes":
        """Those of one matrix or vector, in fp64, part by part."""
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
        """Entries in all."""
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
        """E[(w − μ)⁴] / σ⁴: 3 for a Gaussian, more where few entries are far out; None where all are alike."""
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
        """The magnitude below which this fraction of the entries is."""
        below = (self.counts.cumsum(0) + self.zeros) / max(self.number, 1)
        reached = int((below < fraction).sum())
        if fraction * self.number <= self.zeros or reached >= len(self.counts):
            return 0.0 if fraction * self.number <= self.zeros else self.largest
        return float(self.sums[reached] / self.counts[reached])

    def top_share(self, fraction: float) -> float:
        """How much of Σ|w| the largest `fraction` of the entries hold."""
        wanted = fraction * self.number
        counts, sums = self.counts.flip(0), self.sums.flip(0)
        # Of the class where the count is reached, as many as are still wanted, each with the mean of the class.
        taken = (wanted - (counts.cumsum(0) - counts)).clamp(min=0).minimum(counts)
        held = (sums * taken / counts.clamp(min=1)).sum()
        return float(held / self.sums.sum().clamp(min=torch.finfo(torch.float64).tiny))

    def histogram(self, per_decade: int = 10) -> tuple[list[float], list[float]]:
        """Magnitudes at which wider classes begin, and the fraction of all entries in each; zeros are in none."""
        wide = self.counts[1:-1].reshape(-1, PER_DECADE // per_decade).sum(1) / max(self.number, 1)
        wide[0] += self.counts[0] / max(self.number, 1)
        wide[-1] += self.counts[-1] / max(self.number, 1)
        begins = [10 ** (SMALLEST + at / per_decade) for at in range(len(wide))]
        return begins, wide.tolist()
