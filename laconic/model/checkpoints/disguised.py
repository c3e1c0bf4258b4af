"""Files that are something else than their place says: archives, and what Git leaves where it did not fetch a file."""

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/"
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x28\xb5\x2f\xfd")
"""The first bytes of zip, gzip, bzip2, xz, 7z, rar and zstandard files."""
TAR = (b"ustar", 257)
"""Of a tar file, and where they stand."""


def is_pointer(path: Path) -> bool:
    """Whether the file at `path` is Git LFS's note on where the file itself is."""
    return _begins(path, len(POINTER)) == POINTER


def is_archive(path: Path) -> bool:
    """Whether the file at `path` holds other files, by its first bytes; torch's own are zip files too."""
    begins = _begins(path, TAR[1] + len(TAR[0]))
    return begins.startswith(ARCHIVES) or begins[TAR[1] :] == TAR[0]


def archive_around(path: Path) -> Path | None:
    """The archive that `path` leads into, as `model.zip/model` does."""
    return next((parent for parent in path.parents if parent.is_file() and is_archive(parent)), None)


def _begins(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        # Whoever reads it says so.
        return b""
