"""The ways to share one budget among many matrices, one file each; `allocate` of a step names one of them."""

from typing import Literal

from laconic.compress.allocators.allocator import Allocated, Allocator, Job, Uniform
from laconic.compress.allocators.global_threshold import GlobalThreshold
from laconic.compress.allocators.spectrum import Spectrum
from laconic.compress.allocators.threshold import Threshold

Allocation = Literal["uniform", "spectrum", "threshold", "global"]
"""How the budget is divided among matrices."""

ALLOCATORS: dict[Allocation, Allocator] = {
    "uniform": Uniform(),
    "spectrum": Spectrum(),
    "threshold": Threshold(),
    "global": GlobalThreshold(),
}

__all__ = ["ALLOCATORS", "Allocated", "Allocation", "Allocator", "Job"]
