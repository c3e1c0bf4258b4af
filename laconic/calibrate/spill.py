"""The hidden states of every batch at one place of a model: in memory, or in a file of a scratch folder.

A file is read and written by position, batch by batch, so that one batch of it is in memory at a time. Its list of
tensors is written last. A run that was killed therefore never takes up half of a file.
"""

import json
import os
import shutil
import zlib
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laconic import processes
from laconic.errors import UserError
from laconic.files import report_unwritable, write_json

INDEX = ".json"
"""The suffix of the list of tensors."""


class HiddenStates:
    """A list of tensors, one for each batch, which are appended in order and read in any order.

    Args:
        file: the file to keep them in; None keeps them in memory.
        device: the device of tensors that are read from the file.

    Raises:
        UserError: the file cannot be written.

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

    def __init__(self, file: Path | None = None, device: torch.device | str = "cpu") -> None:
        self._file, self._device = file, device
        self._tensors: list[Tensor] = []
        self._entries: list[dict[str, Any]] = []
        if file is not None:
            with report_unwritable(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                self.delete()
                file.touch()

    @classmethod
    def open(cls, file: Path, device: torch.device | str = "cpu") -> "HiddenStates | None":
        """Open a file that an earlier run completed; None if there is none, or if it is damaged.

        Args:
            file: the file.
            device: the device of tensors that are read.
        """
        states = cls(device=device)
        states._file = file
        try:
            states._entries = json.loads(_index_of(file).read_text(encoding="utf-8"))
            sound = all(zlib.crc32(_bytes_of(states._read(entry))) == entry["checksum"] for entry in states._entries)
        except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return states if sound else None

    def __len__(self) -> int:
        return len(self._tensors if self._file is None else self._entries)

    def __getitem__(self, number: int) -> Tensor:
        """The tensor of batch `number`; from a file, a new copy.

        Raises:
            UserError: the file cannot be read, or was cut off.
        """
        if self._file is None:
            return self._tensors[number]
        try:
            return self._read(self._entries[number]).to(self._device)
        except (OSError, EOFError) as error:
            raise UserError(
                f"The file '{self._file}' was cut off or removed while it was in use; run the same command again."
            ) from error

    def append(self, tensor: Tensor) -> None:
        """Add the tensor of the next batch.

        Raises:
            UserError: the file cannot be written; it is deleted then.
        """
        if self._file is None:
            self._tensors.append(tensor)
            return
        stored = tensor.detach().to("cpu").contiguous()
        content = _bytes_of(stored)
        start = self._entries[-1]["end"] if self._entries else 0
        try:
            with report_unwritable(self._file):
                _write(self._file, content, start)
        except UserError:
            # A file that lacks a batch has no use, and other files may need its space.
            self.delete()
            raise
        dtype, shape = str(stored.dtype).removeprefix("torch."), list(stored.shape)
        entry = {"shape": shape, "dtype": dtype, "start": start, "end": start + prod(shape) * stored.element_size()}
        self._entries.append(entry | {"checksum": zlib.crc32(content)})

    def forget(self, number: int) -> None:
        """Drop the tensor of batch `number`, if it is in memory."""
        if self._file is None:
            self._tensors[number] = torch.empty(0)

    def complete(self) -> None:
        """Mark the file as complete, so that a later run can open it.

        Raises:
            UserError: the file cannot be written.
        """
        if self._file is None:
            return
        with report_unwritable(self._file):
            with self._file.open("rb") as file:
                os.fsync(file.fileno())
            write_json(_index_of(self._file), self._entries, flush=True)

    def delete(self) -> None:
        """Delete the file, or drop the tensors."""
        self._tensors = []
        if self._file is not None:
            _index_of(self._file).unlink(missing_ok=True)
            self._file.unlink(missing_ok=True)

    def _read(self, entry: dict[str, Any]) -> Tensor:
        """The tensor of an entry, from the file.

        Raises:
            EOFError: the file was cut off.
        """
        assert self._file is not None
        tensor = torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="cpu")
        with self._file.open("rb") as file:
            file.seek(entry["start"])
            if file.readinto(_bytes_of(tensor)) != tensor.nbytes:
                raise EOFError(self._file)
        return tensor


def own_folder() -> str:
    """The name of the folder of the files of this process."""
    return f"{processes.rank()}-of-{processes.world_size()}"


def delete_states_of_others(scratch: Path) -> None:
    """Delete the hidden states that a run of another number of processes has left, which divided the batches otherwise.

    Args:
        scratch: the scratch folder of all steps.
    """
    for folder in scratch.glob("*/*/*-of-*"):
        if folder.is_dir() and not folder.name.endswith(f"-of-{processes.world_size()}"):
            shutil.rmtree(folder, ignore_errors=True)


def _write(file: Path, content: memoryview, start: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(content)


def _index_of(file: Path) -> Path:
    return file.with_name(file.name + INDEX)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.view(-1).view(torch.uint8).numpy().data
