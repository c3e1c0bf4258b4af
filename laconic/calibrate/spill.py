"""The hidden states of every batch at one place of a model: in memory, or in a file of a scratch folder.

A file is read and written by position, batch by batch, so that one batch of it is in memory at a time. It has its final
name only when it is complete. A run that was killed therefore never takes up half of a file.
"""

import json
import os
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laconic.errors import UserError

COMPLETE = ".json"
"""The suffix of the list of shapes, which is written last."""


class HiddenStates:
    """A list of tensors, one for each batch, which are appended in order and read in any order.

    Args:
        file: the file to keep them in; None keeps them in memory.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> states = HiddenStates(Path(folder.name) / "states")
        >>> states.append(torch.ones(1, 2))
        >>> states.complete()
        >>> states[0], HiddenStates.open(Path(folder.name) / "states")[0].shape
        (tensor([[1., 1.]]), torch.Size([1, 2]))
        >>> folder.cleanup()
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._tensors: list[Tensor] = []
        self._entries: list[dict[str, Any]] = []
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.delete()
            file.touch()

    @classmethod
    def open(cls, file: Path) -> "HiddenStates | None":
        """Read the list of a file that an earlier run completed; None if there is none."""
        index = file.with_name(file.name + COMPLETE)
        if not index.exists():
            return None
        states = cls()
        states._file, states._entries = file, json.loads(index.read_text(encoding="utf-8"))
        return states

    def __len__(self) -> int:
        return len(self._tensors if self._file is None else self._entries)

    def __getitem__(self, number: int) -> Tensor:
        """The tensor of batch `number`; from a file, a new copy on the device that it was on.

        Raises:
            UserError: the file was cut off.
        """
        if self._file is None:
            return self._tensors[number]
        entry = self._entries[number]
        tensor = torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        with self._file.open("rb") as file:
            file.seek(entry["start"])
            read = file.readinto(_bytes_of(tensor))
        if read != tensor.nbytes:
            raise UserError(f"The file '{self._file}' was cut off; remove its folder, and start again.")
        return tensor.to(entry["device"])

    def append(self, tensor: Tensor) -> None:
        """Add the tensor of the next batch."""
        if self._file is None:
            self._tensors.append(tensor)
            return
        stored = tensor.detach().to("cpu").contiguous()
        start = self._entries[-1]["end"] if self._entries else 0
        with self._file.open("r+b") as file:
            file.seek(start)
            file.write(_bytes_of(stored))
        dtype, shape = str(stored.dtype).removeprefix("torch."), list(stored.shape)
        entry = {"shape": shape, "dtype": dtype, "device": str(tensor.device), "start": start}
        self._entries.append(entry | {"end": start + prod(shape) * stored.element_size()})

    def forget(self, number: int) -> None:
        """Drop the tensor of batch `number`, if it is in memory."""
        if self._file is None:
            self._tensors[number] = torch.empty(0)

    def complete(self) -> None:
        """Mark the file as complete, so that a later run can open it."""
        if self._file is None:
            return
        with self._file.open("rb") as file:
            os.fsync(file.fileno())
        index = self._file.with_name(self._file.name + COMPLETE)
        partial = index.with_name(index.name + ".part")
        partial.write_text(json.dumps(self._entries), encoding="utf-8")
        partial.replace(index)

    def delete(self) -> None:
        """Delete the file, or drop the tensors."""
        self._tensors = []
        if self._file is not None:
            self._file.with_name(self._file.name + COMPLETE).unlink(missing_ok=True)
            self._file.unlink(missing_ok=True)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.view(-1).view(torch.uint8).numpy().data
