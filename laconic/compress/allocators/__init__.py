"""Allocators: ways to divide one budget among many matrices. The field `allocate` of `Compress` names one of them."""

from typing import Literal, get_args

from laconic.compress.allocators.allocator import AllocationRequest, AllocationResult, Allocator, Uniform
from laconic.compress.allocators.file_types import FileType, FileTypeName
from laconic.compress.allocators.global_threshold import GlobalThreshold
from laconic.compress.allocators.spectrum import Spectrum
from laconic.compress.allocators.threshold import Threshold

Allocation = Literal["uniform", "spectrum", "threshold", "global", FileTypeName]
"""The names of the allocators."""

ALLOCATORS: dict[Allocation, Allocator] = {
    "uniform": Uniform(),
    "spectrum": Spectrum(),
    "threshold": Threshold(),
    "global": GlobalThreshold(),
    **{name: FileType(name) for name in get_args(FileTypeName)},
}

__all__ = ["ALLOCATORS", "Allocation", "AllocationRequest", "AllocationResult", "Allocator"]
