"""The ways to share one budget among many matrices, one file each; `allocate` of a step names one of them."""

from typing import Literal

from laconic.compress.ways.global_threshold import GlobalThreshold
from laconic.compress.ways.spectrum import Spectrum
from laconic.compress.ways.threshold import Threshold
from laconic.compress.ways.uniform import Uniform
from laconic.compress.ways.way import Job, Planned, Way

Allocation = Literal["uniform", "spectrum", "threshold", "global"]

WAYS: dict[Allocation, Way] = {
    "uniform": Uniform(),
    "spectrum": Spectrum(),
    "threshold": Threshold(),
    "global": GlobalThreshold(),
}

__all__ = ["WAYS", "Allocation", "Job", "Planned", "Way"]
