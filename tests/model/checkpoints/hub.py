"""A cache of the hub, laid out as huggingface_hub lays it out."""

import shutil
from pathlib import Path


def put(folder: Path, name: str, cache: Path, commit: str = "0" * 40, branch: str = "main") -> None:
    """Put the files of `folder` into `cache` as the repository `name` at `commit`, which `branch` is at."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
