"""The architecture that a GGUF file names at its beginning, read without the package gguf.

Source: the specification of GGUF, `docs/gguf.md` of ggml, version 2 and later.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from laconic.model.checkpoints.gguf import MAGIC

KEY = b"general.architecture"
TEXT = 8
"""The number of the type of a text."""


def read_architecture(path: Path) -> str | None:
    """The architecture of a file; None if it is no GGUF file, or says another key first.

    All writers of llama.cpp put this key first.

    Args:
        path: the file.

    Example:
        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile() as file:
        ...     header = MAGIC + struct.pack("<IQQQ", 3, 0, 1, len(KEY)) + KEY + struct.pack("<IQ", TEXT, 2) + b"t5"
        ...     _ = file.write(header)
        ...     file.flush()
        ...     read_architecture(Path(file.name))
        't5'
    """
    with path.open("rb") as file:
        try:
            magic, _, _, count = struct.unpack("<4sIQQ", file.read(24))
            if magic != MAGIC or not count or _text(file) != KEY or struct.unpack("<I", file.read(4)) != (TEXT,):
                return None
            return _text(file).decode(errors="replace")
        except struct.error:
            # The file ends in its header.
            return None


def _text(file: BinaryIO) -> bytes:
    """The next text, without what is longer than any key or architecture."""
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(min(length, 256))
