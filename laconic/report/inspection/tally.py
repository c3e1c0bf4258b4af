"""What is counted of one matrix or vector, and of several together."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor

from laconic.model import Group, Role
from laconic.numerics.inspection import Magnitudes, effective_rank, energy_rank, singular_values

KINDS: dict[tuple[Group, Role], str] = {
    (Group.ATTENTION, Role.QUERY): "query",
    (Group.ATTENTION, Role.KEY): "key",
    (Group.ATTENTION, Role.VALUE): "value",
    (Group.ATTENTION, Role.FUSED): "query-key-value",
    (Group.ATTENTION, Role.OUTPUT): "attention out",
    (Group.FFN, Role.INNER): "ffn in",
    (Group.FFN, Role.OUTPUT): "ffn out",
    # Of a model that was found by its structure nothing more is known.
    (Group.ATTENTION, Role.OTHER): "attention",
    (Group.FFN, Role.OTHER): "ffn",
}
EMBEDDING, HEAD, OTHER_MATRIX, NORM, BIAS = "embedding", "head", "other", "norm", "bias"
IN_BLOCKS = tuple(KINDS.values())
ORDER = (EMBEDDING, *IN_BLOCKS, HEAD, OTHER_MATRIX, NORM, BIAS)
THRESHOLDS = (0.001, 0.01, 0.1, 1.0)
TOP = (0.01, 0.1, 0.5)
DRAWN = 128
"""Singular values that are kept of a matrix, at equal distances."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """values: up to 128 singular values at equal distances, falling.
    effective: exp of the entropy of σ / Σσ (Roy & Vetterli 2007); rank_90 and rank_99: for so many % of Σσ².
    full: min(out, in).
    """

    values: tuple[float, ...]
    effective: float
    rank_90: int
    rank_99: int
    full: int

    @classmethod
    def of(cls, weight: Tensor) -> "Spectrum":
        """That of one matrix."""
        s = singular_values(weight)
        step = max(1, -(-len(s) // DRAWN))
        return cls(
            values=tuple(s[::step].tolist()),
            effective=effective_rank(s),
            rank_90=energy_rank(s, 0.9),
            rank_99=energy_rank(s, 0.99),
            full=len(s),
        )


@dataclass(frozen=True, kw_only=True)
class Tally:
    """One matrix, or one vector, which has no spectrum.

    layer: of the block that it lies in, as `layers` of the whole spells it; None outside the blocks.
    bits:  of a file, for each of its entries, zeros included.
    """

    name: str
    kind: str
    layer: str | None
    shape: tuple[int, ...]
    bits: float
    magnitudes: Magnitudes
    spectrum: Spectrum | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        spectrum = self.spectrum
        ranks = {} if spectrum is None else {
            "effective_rank": spectrum.effective, "rank_90": spectrum.rank_90, "rank_99": spectrum.rank_99,
            "full_rank": spectrum.full, "singular_values": list(spectrum.values),
        }  # fmt: skip
        place = {"name": self.name, "kind": self.kind, "layer": self.layer, "shape": list(self.shape)}
        return {**place, "stored_bits": self.bits, **figures(self.magnitudes), **ranks}


def figures(found: Magnitudes) -> dict[str, Any]:
    """What the magnitudes say, as plain values; histogram: fraction of the entries by the magnitude it begins at."""
    begins, heights = found.histogram()
    return {
        "number": found.number,
        "sparsity": found.zeros / max(found.number, 1),
        "mean": found.mean,
        "deviation": found.deviation,
        "kurtosis": found.kurtosis,
        "largest": found.largest,
        "median": found.quantile(0.5),
        "at_least": {f"{threshold:g}": found.at_least(threshold) for threshold in THRESHOLDS},
        "top_l1": {f"{share:g}": found.top_share(share) for share in TOP},
        "histogram": {f"{begin:.3g}": height for begin, height in zip(begins, heights, strict=True) if height},
    }


def together(tallies: Iterable[Tally]) -> Magnitudes:
    """The magnitudes of all of them."""
    return reduce(add, (tally.magnitudes for tally in tallies))
