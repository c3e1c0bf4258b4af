"""What the two tables of docs/figures.md compare: ten ways of low rank, six sizes, two fine-tuned encoders."""

from collections.abc import Iterable
from dataclasses import replace

from laconic.compress import Compress
from laconic.methods import Asvd, Drone, Fwsvd, KfacSvd, Svd, Wlra

MODELS = {"minilm-sst2": "glue/sst2", "minilm-stsb": "glue/stsb"}
"""Folder of each model, and the task that it was fine-tuned on."""

METRICS = {"minilm-sst2": "accuracy", "minilm-stsb": "Pearson"}
SEEDS = (0, 1, 2)
KEEPS = (0.8, 0.65, 0.5, 0.35, 0.25, 0.1)
CALIBRATION_ROWS = 128

WAYS: dict[str, Compress] = {
    "svd": Compress(method=Svd(), keep=1),
    "fwsvd": Compress(method=Fwsvd(), keep=1),
    "asvd": Compress(method=Asvd(), keep=1),
    "wlra": Compress(method=Wlra(), keep=1),
    "drone": Compress(method=Drone(), keep=1),
    "kfac-svd": Compress(method=KfacSvd(), keep=1),
    "drone + spectrum": Compress(method=Drone(), keep=1, allocate="spectrum"),
    "kfac-svd + spectrum": Compress(method=KfacSvd(), keep=1, allocate="spectrum"),
    "… + shared": Compress(method=KfacSvd(), keep=1, allocate="spectrum", share_inputs=True),
    "… + anchored": Compress(method=KfacSvd(), keep=1, allocate="spectrum", share_inputs=True, anchored=True),
}
"""The steps on attention and feed-forward matrices, but for their size; … stands for the line before."""


TIMED = ("kfac-svd", "kfac-svd + spectrum")
"""One of the ways with uniform ranks, and the one whose ranks the anchored way has too."""


def step_of(way: str, keep: float) -> Compress:
    """The step that `way` stands for, at one size."""
    return replace(WAYS[way], keep=keep)


def every_need(ways: Iterable[str] = tuple(WAYS)) -> frozenset:
    """The statistics that any of `ways` asks for, so that one survey serves all."""
    return frozenset().union(*(step_of(way, 0.5).needs for way in ways))
