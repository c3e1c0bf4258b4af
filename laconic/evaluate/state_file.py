"""A file with the last hidden states of a model at the positions that are scored.

The states and the head give the log-probabilities of all tokens exactly, in the dtype that the model computed in. A
state is a hundred times smaller than the log-probabilities of a vocabulary: of Qwen2.5-0.5B 3.6 kB in float32, where
152,000 log-probabilities in 16 bits take 304 kB. So all states of an evaluation are kept, and nothing is left out.
"""

import json
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.cache import DiskCache
from laconic.errors import UserError, reason_of

FOLDER = "states"
ENTRIES = DiskCache(FOLDER, ".states")
IN_MEMORY = 2**26
"""Bytes up to which a new file is kept in memory."""
COPIED = 2**24
"""Bytes that are copied at a time."""
DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class StateFile:
    """The states of several batches, one after another, behind a line of JSON.

    Args:
        file: the open file, which is closed with the last use of this object. It may have been removed from its folder.
        start: the position of the first state.
        sizes: the number of states of each batch.
        width: the number of values of a state.
        dtype: the dtype of the values.
    """

    file: IO[bytes]
    start: int
    sizes: Sequence[int]
    width: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)

    @classmethod
    def load(cls, path: Path) -> "StateFile":
        """Open an entry of the cache.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not whole.
        """
        with ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))
            header = json.loads(file.readline())
            found = cls(file, file.tell(), header["sizes"], header["width"], DTYPES[header["dtype"]])
            if path.stat().st_size != found.start + found.nbytes:
                raise ValueError(f"{path} has not the size that its first line says")
            # From here on `found` closes it.
            stack.pop_all()
        return found

    @property
    def nbytes(self) -> int:
        """The size of all states."""
        return sum(self.sizes) * self.width * self.dtype.itemsize

    def read(self, device: torch.device) -> Iterator[Float[Tensor, "n width"]]:
        """The states of each batch in turn.

        Args:
            device: the device to move them to.
        """
        position = self.start
        for size in self.sizes:
            nbytes = size * self.width * self.dtype.itemsize
            self.file.seek(position)
            position += nbytes
            content = bytearray(self.file.read(nbytes))
            states = torch.frombuffer(content, dtype=self.dtype) if content else torch.empty(0, dtype=self.dtype)
            yield states.view(size, self.width).to(device)

    def copy_to(self, path: Path) -> None:
        """Write an entry of the cache."""
        header = {"sizes": list(self.sizes), "width": self.width, "dtype": str(self.dtype)}
        self.file.seek(self.start)
        with path.open("wb") as copy:
            copy.write(json.dumps(header).encode() + b"\n")
            while part := self.file.read(COPIED):
                copy.write(part)


def keep_states(states: Iterable[Float[Tensor, "n width"]], key: str | None) -> StateFile:
    """Write states to a temporary file, and to the cache.

    Args:
        states: the states of each batch; they are computed while they are written.
        key: the name of the entry in the cache; None to leave the cache as it is.

    Raises:
        UserError: there is no room for the temporary file.
    """
    file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - it stays open as long as its states are needed
    sizes: list[int] = []
    width, dtype = 0, torch.float32
    for part in states:
        sizes.append(len(part))
        width, dtype = part.shape[1], part.dtype
        try:
            file.write(part.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise UserError(
                f"The hidden states of the original cannot be kept in a temporary file: {reason_of(error)}; set TMPDIR "
                "to a folder with more room, or take fewer rows (--limit)."
            ) from error
    found = StateFile(file, 0, sizes, width, dtype)
    if key is not None:
        ENTRIES.write(key, found.copy_to, found.nbytes)
    return found
