"""Read recipes and studies, and check folders and devices, without importing torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fsdecode
from pathlib import Path
from typing import Any

import yaml

from laconic.builtin_recipes import Kind, find_file
from laconic.errors import UserError, must_be
from laconic.files import expand_user
from laconic.yaml_loader import read_text

WIDE = 2**31
"""A line length that no value reaches, so that YAML stays on one line."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A recipe or a study in YAML, and the values that replace some of it.

    Args:
        text: the YAML.
        path: the file with the text. Paths in the text may be relative to its folder.
        overrides: `key=value` items, such as `steps[0].compress.keep=0.3`.
    """

    text: str
    path: Path
    overrides: tuple[str, ...] = ()


def read_document(
    source: object, kind: Kind, changes: Mapping[str, object] | None = None, overrides: Sequence[str] = ()
) -> Document:
    """Read a recipe or a study.

    Args:
        source: a path, the name of a built-in recipe or study, or a mapping as parsed from YAML.
        kind: `recipe` or `study`.
        changes: values that replace those of the document, by their position.
        overrides: the same as text, in the form `key=value`.

    Raises:
        UserError: there is no such file, or YAML cannot represent a value.

    Example:
        >>> read_document({"model": "MODEL"}, "recipe", {"samples": 4})
        Document(text='{model: MODEL}', path=PosixPath('recipe'), overrides=('samples=4',))
    """
    if isinstance(source, Document):
        return source
    replaced = (*(f"{key}={_yaml(value, f'{kind}.{key}')}" for key, value in (changes or {}).items()), *overrides)
    if isinstance(source, Mapping):
        return Document(text=_yaml(dict(source), kind), path=Path(kind), overrides=replaced)
    if not isinstance(source, (str, PathLike)):
        raise must_be(kind, f"a file, the name of a {kind} that comes with laconic, or a mapping", source)
    path = find_file(fsdecode(source), kind) if isinstance(source, str) else Path(fsdecode(source))
    return Document(text=read_text(path, kind), path=path, overrides=replaced)


def _yaml(value: object, place: str) -> str:
    """The value as one line of YAML."""
    form = {"default_flow_style": True, "sort_keys": False, "width": WIDE, "allow_unicode": True}
    try:
        line = yaml.dump(_plain(value), Dumper=_Dumper, **form)
    except yaml.YAMLError as error:
        raise must_be(place, "made of numbers, texts, lists and mappings", value) from error
    return line.removesuffix("\n").removesuffix("\n...")


class _Dumper(yaml.SafeDumper):
    """Writes repeated values in full instead of aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _plain(value: object) -> object:
    """Convert paths to text and tuples to lists, which YAML cannot represent."""
    match value:
        case PathLike():
            return fsdecode(value)
        case Mapping():
            return {key: _plain(part) for key, part in value.items()}
        case list() | tuple():
            return [_plain(part) for part in value]
        case _:
            return value


def local_folder(name: str, place: str) -> Path | None:
    """The local folder that an argument names; None for a URL.

    Args:
        name: the argument, for errors.
        place: a folder or a URL.

    Raises:
        UserError: `place` is empty.

    Example:
        >>> local_folder("output", "s3://bucket/study") is None
        True
    """
    if not place.strip():
        raise must_be(name, "a folder or a URL", place)
    return None if "://" in place else expand_user(place).absolute()


def check_device(device: object) -> str:
    """Check the name of a device, but not whether this machine has it.

    Raises:
        UserError: the name is not `cpu`, `cuda` or `cuda:N`.

    Example:
        >>> check_device("cuda:1")
        'cuda:1'
    """
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise must_be("device", "cpu, cuda or cuda:N", device)
    return device


def local_device(device: object) -> str:
    """The device of this process. With several processes, `cuda` becomes a different GPU for each.

    Raises:
        UserError: this machine has no such device, or several processes would use the same GPU.

    Example:
        >>> local_device("cpu")
        'cpu'
    """
    name = check_device(device)
    if name == "cpu":
        return name
    import torch

    from laconic import processes

    try:
        name = processes.local_device(name)
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{device}' is not available here; use cpu, or a device that torch sees.") from error
    return name
