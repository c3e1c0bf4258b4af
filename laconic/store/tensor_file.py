"""Write a safetensors file in chunks, so that its tensors need not be in memory.

`safetensors.torch.save_file` takes all tensors of a file at once. The format is simple: the length of the header, the
header as JSON with the dtype, the shape and the place of each tensor, and the values
(https://huggingface.co/docs/safetensors/index#format).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from laconic.errors import UserError
from laconic.model.checkpoints.weights import DTYPES

ALIGNMENT = 8
"""Bytes to a multiple of which the header is padded with spaces."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class ChunkedTensor:
    """A tensor that is read when it is written.

    Args:
        shape: its shape.
        dtype: the dtype in which it is written.
        chunks: reads its values in consecutive chunks, in any dtype.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: Callable[[], Iterator[Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(tensors: Mapping[str, ChunkedTensor], file: Path) -> None:
    """Write tensors to a safetensors file.

    Args:
        tensors: the tensors by name.
        file: the new file.

    Raises:
        OSError: the file cannot be written.
        UserError: the format has no name for the dtype of a tensor.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import load_file
        >>> ones = ChunkedTensor((2, 2), torch.float16, lambda: iter(torch.ones(2, 2)))
        >>> with TemporaryDirectory() as folder:
        ...     write_tensors({"ones": ones}, Path(folder) / "a.safetensors")
        ...     load_file(Path(folder) / "a.safetensors")["ones"].tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    # The order of `save_file`: wide numbers first, so that all are aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in NAMES:
            raise UserError(f"A safetensors file cannot hold '{name}' in {tensor.dtype}; convert it to another dtype.")
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in ordered:
            count = sum(opened.write(_values(chunk.to(tensor.dtype))) for chunk in tensor.chunks())
            assert count == tensor.nbytes, f"{count} bytes of '{name}' were read, and {tensor.nbytes} expected"


def _values(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
