"""What the tables of docs/pruning.md on single weights compare: nine ways, five sparsities and two patterns."""

from dataclasses import dataclass, replace

from laconic.compress import Compress
from laconic.methods import KfacPrune, Magnitude, SparseGpt, Wanda
from laconic.methods.prune.unstructured import UnstructuredPruning

CALIBRATION_ROWS = 256
SPARSITIES = ("0.5", "0.6", "0.7", "0.8", "0.9")
PATTERNS = ("2:4", "4:8")
SIZES = (*SPARSITIES, *PATTERNS)


@dataclass(frozen=True)
class Way:
    """How a model gets its zeros. `shots` prune it little by little, on statistics that are collected anew."""

    step: Compress
    shots: int = 1

    def steps(self, size: str) -> list[Compress]:
        """The steps that end at `size`, a sparsity or a pattern; each shot keeps the same fraction of what is left."""
        method = self.step.method
        assert isinstance(method, UnstructuredPruning)
        if size in PATTERNS:
            return [replace(self.step, method=replace(method.without_size(), pattern=size), allocate="uniform")]
        kept = 1 - float(size)
        shots = [1 - kept ** (shot / self.shots) for shot in range(1, self.shots)]
        return [replace(self.step, method=method.with_sparsity(round(s, 4))) for s in (*shots, float(size))]


def _globally(method: UnstructuredPruning, shots: int = 1, anchored: bool = False) -> Way:
    return Way(Compress(method=method, allocate="global", anchored=anchored), shots)


WAYS: dict[str, Way] = {
    "magnitude": _globally(Magnitude(sparsity=0.5)),
    "wanda": Way(Compress(method=Wanda(sparsity=0.5))),
    "sparsegpt": Way(Compress(method=SparseGpt(sparsity=0.5))),
    "kfac-prune": _globally(KfacPrune(sparsity=0.5)),
    "kfac-prune, OBD": _globally(KfacPrune(sparsity=0.5, score="obd")),
    "kfac-prune, OBS": _globally(KfacPrune(sparsity=0.5, score="obs")),
    "… in two shots": _globally(KfacPrune(sparsity=0.5), shots=2),
    "… in three shots": _globally(KfacPrune(sparsity=0.5), shots=3),
    "… anchored": _globally(KfacPrune(sparsity=0.5), anchored=True),
}
"""On attention and feed-forward matrices; … stands for kfac-prune as it is by default, as its own line does."""

IN_PATTERNS = ("magnitude", "wanda", "sparsegpt", "kfac-prune", "kfac-prune, OBD", "kfac-prune, OBS")
"""The ways that patterns tell apart: a pattern leaves nothing to share out."""


def sizes_of(way: str) -> tuple[str, ...]:
    """What `way` is measured at."""
    return SIZES if way in IN_PATTERNS else SPARSITIES
