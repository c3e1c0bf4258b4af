"""What the README's two tables compare: six ways of low rank, five sizes, two fine-tuned encoders."""

from collections.abc import Iterable

from laconic.compress import Compress
from laconic.methods import Drone, Fwsvd, KfacSvd, Method, Svd

MODELS = {"minilm-sst2": "glue/sst2", "minilm-stsb": "glue/stsb"}
"""Folder of each model, and the task that it was fine-tuned on."""

METRICS = {"minilm-sst2": "accuracy", "minilm-stsb": "Pearson"}
SEEDS = (0, 1, 2)
KEEPS = (0.8, 0.65, 0.5, 0.35, 0.25)
CALIBRATION_ROWS = 128

WAYS: dict[str, tuple[Method, str]] = {
    "svd": (Svd(), "uniform"),
    "fwsvd": (Fwsvd(), "uniform"),
    "drone": (Drone(), "uniform"),
    "kfac-svd": (KfacSvd(), "uniform"),
    "drone + spectrum": (Drone(), "spectrum"),
    "kfac-svd + spectrum": (KfacSvd(), "spectrum"),
}


def step_of(way: str, keep: float) -> Compress:
    """The step that `way` stands for, on attention and feed-forward matrices."""
    method, allocate = WAYS[way]
    return Compress(method=method, keep=keep, allocate="spectrum" if allocate == "spectrum" else "uniform")


def every_need(ways: Iterable[str] = tuple(WAYS)) -> frozenset:
    """The statistics that any of `ways` asks for, so that one survey serves all."""
    return frozenset().union(*(step_of(way, 0.5).needs for way in ways))
