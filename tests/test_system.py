"""Freed memory that the C library keeps."""

import resource
import sys

import pytest
import torch

from laconic.system import keeping_large_blocks, release_freed_memory

MEGABYTES = 48
"""More than glibc keeps by itself."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")


def fill_twice() -> int:
    """The pages that the second of two tensors needs, after the first is freed.

    torch asks for aligned memory, for which glibc first needs a few bytes more than the block has in the end. If some
    other object lies behind the first block, one of equal size would not fit into it again.
    """
    size = MEGABYTES * 2**20 // 4
    torch.ones(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size - 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """The resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_a_large_tensor_gets_the_pages_of_one_that_was_freed():
    with keeping_large_blocks():
        kept = fill_twice()
    pages = MEGABYTES * 2**20 // resource.getpagesize()
    assert kept < pages // 10


def test_the_pages_are_released_at_the_end():
    release_freed_memory()
    before = resident()
    with keeping_large_blocks():
        torch.ones(MEGABYTES * 2**20 // 4)
    assert resident() - before < MEGABYTES * 2**20 // 4
