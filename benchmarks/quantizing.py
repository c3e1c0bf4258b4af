"""What the tables of docs/quantization.md compare: methods, bits and groups; then combinations in as many bytes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from laconic.compress import Compress
from laconic.methods import Awq, Gptq, KfacPrune, KfacSvd, KMeans, Plus, Rtn, Yaqa
from laconic.methods.quantize.base import QuantizationMethod

CALIBRATION_ROWS = 128
BITS = (8, 4, 3, 2)
GROUPS = (32, 64, 128, "channel")
METHODS: dict[str, QuantizationMethod] = {
    "rtn": Rtn(),
    "gptq": Gptq(),
    "yaqa": Yaqa(),
    "awq": Awq(),
    "kmeans": KMeans(),
}
"""By the name in the tables."""

USUAL = Gptq(group_size=64)
"""What combinations are quantized by."""

Steps = Callable[[int], list[Compress]]
"""The steps of a model whose weights are stored in so many bits."""


@dataclass(frozen=True)
class Ground:
    """A model, where its rows come from, and how many of them it is judged on; None for the whole development split.

    halves: the source has no split of its own: calibrated on rows of its first half, judged on the last ones.
    """

    source: str
    metric: str
    rows: int | None = None
    halves: bool = False


GROUNDS = {
    "minilm-sst2": Ground("glue/sst2", "accuracy"),
    "minilm-stsb": Ground("glue/stsb", "Pearson"),
    "bart-g2p-us": Ground("g2p", "perplexity", rows=500),
    "mico-tinyllama-1m": Ground("tinystories", "perplexity", rows=100, halves=True),
    "stories260K": Ground("tinystories", "perplexity", rows=100, halves=True),
}


def alone(name: str, bits: int, group: int | str) -> Steps:
    """One method by itself."""
    method = replace(METHODS[name], bits=bits, group_size=group)
    return lambda whole: [Compress(method=method)]


def mixed(bits: float) -> Steps:
    """As many bytes as `bits` on average and the scales, spent by the predicted loss."""
    return lambda whole: [Compress(method=USUAL, keep=_with_grids(bits) / whole, allocate="spectrum")]


def _with_grids(bits: float) -> float:
    """Bits a weight with a scale of 16 bits and a zero point for every 64 of them."""
    return bits + (16 + bits) / 64


def _bits(bits: int) -> Steps:
    return lambda whole: [Compress(method=replace(USUAL, bits=bits))]


def _sparse(sparsity: float, bits: int) -> Steps:
    pruned = Compress(method=KfacPrune(sparsity=sparsity), allocate="global")
    return lambda whole: [pruned, Compress(method=replace(USUAL, bits=bits))]


def _low_rank(budget: float, bits: int) -> Steps:
    """Factors in so many bits that take the bytes of `budget` bits a weight."""
    return lambda whole: [
        Compress(method=KfacSvd(), keep=min(_with_grids(budget) / _with_grids(bits), 1.0), allocate="spectrum"),
        Compress(method=replace(USUAL, bits=bits)),
    ]


def _plus(bits: int, budget: float) -> Steps:
    return lambda whole: [Compress(method=Plus(base=replace(USUAL, bits=bits)), keep=_with_grids(budget) / whole)]


COMBINATIONS: dict[str, Steps] = {
    "2 bits": _bits(2),
    "mixed, 2.5 bits": mixed(2.5),
    "2 bits + low rank": _plus(2, 2.5),
    "low rank, 6 bits": _low_rank(3, 6),
    "half sparse, 4 bits": _sparse(0.5, 4),
    "3 bits": _bits(3),
    "mixed, 3 bits": mixed(3),
    "3 bits + low rank": _plus(3, 3.5),
    "mixed, 3.5 bits": mixed(3.5),
    "low rank, 8 bits": _low_rank(4, 8),
    "4 bits": _bits(4),
    "mixed, 4 bits": mixed(4),
}
"""What takes about as many bytes stands side by side: half sparse with 4 bits is 3 bits a weight, with its mask."""
