"""Read rows of a large tensor from a safetensors file, a few at a time.

By position, safetensors would read the whole tensor for each row. So the file is mapped, and mapped anew for the next
rows, because the pages that were read count as memory of the process until then.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from types import EllipsisType

import torch
from safetensors import safe_open
from torch import Tensor

CHUNK = 2**22
"""Elements of a large tensor that are read, checked, compared or written at a time."""
ROWS = 256
"""Rows at different places of a file that are read from one mapping of it, as each brings its page and some others."""


def read_chunks(file: Path, name: str, shape: Sequence[int]) -> Iterator[Tensor]:
    """Read a tensor in consecutive chunks.

    Args:
        file: the safetensors file.
        name: the name of the tensor.
        shape: its shape.

    Yields:
        Some rows, about `CHUNK` elements; the whole tensor if it has no more.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is damaged.
    """
    if prod(shape) <= CHUNK:
        yield from _read(file, name, [[...]])
    else:
        step = max(1, CHUNK * shape[0] // prod(shape))
        yield from _read(file, name, ([slice(start, start + step)] for start in range(0, shape[0], step)))


def read_rows(file: Path, name: str, numbers: Sequence[int]) -> Tensor:
    """Read some rows of a matrix.

    Args:
        file: the safetensors file.
        name: the name of the matrix.
        numbers: the numbers of the rows.

    Returns:
        The rows in the given order.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is damaged.
    """
    rows = [slice(number, number + 1) for number in numbers]
    return torch.cat(list(_read(file, name, (rows[start : start + ROWS] for start in range(0, len(rows), ROWS)))))


def _read(file: Path, name: str, groups: Iterable[Sequence[slice | EllipsisType]]) -> Iterator[Tensor]:
    """Read slices of a tensor; the file is mapped anew for each group."""
    for group in groups:
        with safe_open(file, framework="pt", backend="mmap") as tensors:
            rows = tensors.get_slice(name)
            found = [rows[index] for index in group]
        yield from found
