"""A place where a library is not installed, to see what is said then."""

from importlib.metadata import distributions
from pathlib import Path


def without(package: str, folder: Path) -> Path:
    """The new `folder`, in which every distribution that is installed here is installed, except `package`."""
    folder.mkdir()
    for found in distributions():
        name = found.metadata["Name"]
        if name.lower() != package:
            about = folder / f"{name}-{found.version}.dist-info"
            about.mkdir(exist_ok=True)
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {found.version}\n")
    return folder
