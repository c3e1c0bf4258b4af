"""Recipes, studies and devices as a caller names them, read and checked without importing torch."""

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
"""A line length that no value reaches: what is spelled on one line stays on one line."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A recipe or a study in YAML, and the values that replace some of it.

    Args:
        text: the YAML.
        path: the file that it comes from; paths in it may be relative to its folder.
        overrides: `key=value` each, like `steps[0].compress.keep=0.3`.
    """

    text: str
    path: Path
    overrides: tuple[str, ...] = ()


def read_document(
    given: object, kind: Kind, changes: Mapping[str, object] | None = None, overrides: Sequence[str] = ()
) -> Document:
    """Read a recipe or a study.

    Args:
        given: a path, the name of one that comes with laconic, or a mapping as YAML would give it.
        kind: `recipe` or `study`.
        changes: values that replace those in it, by their place.
        overrides: the same as text, `key=value` each.

    Raises:
        UserError: there is no such file, or a value is none that YAML holds.

    Example:
        >>> read_document({"model": "MODEL"}, "recipe", {"samples": 4})
        Document(text='{model: MODEL}', path=PosixPath('recipe'), overrides=('samples=4',))
    """
    if isinstance(given, Document):
        return given
    replaced = (*(f"{key}={_yaml(value, f'{kind}.{key}')}" for key, value in (changes or {}).items()), *overrides)
    if isinstance(given, Mapping):
        return Document(text=_yaml(dict(given), kind), path=Path(kind), overrides=replaced)
    if not isinstance(given, (str, PathLike)):
        raise must_be(kind, f"a file, the name of a {kind} that comes with laconic, or a mapping", given)
    path = find_file(fsdecode(given), kind) if isinstance(given, str) else Path(fsdecode(given))
    return Document(text=read_text(path, kind), path=path, overrides=replaced)


def _yaml(value: object, place: str) -> str:
    """The value on one line of YAML."""
    form = {"default_flow_style": True, "sort_keys": False, "width": WIDE, "allow_unicode": True}
    try:
        spelled = yaml.dump(_plain(value), Dumper=_Dumper, **form)
    except yaml.YAMLError as error:
        raise must_be(place, "made of numbers, texts, lists and mappings", value) from error
    return spelled.removesuffix("\n").removesuffix("\n...")


class _Dumper(yaml.SafeDumper):
    """Writes a value as often as it occurs, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _plain(value: object) -> object:
    """Paths as text and tuples as lists, which YAML has no form for."""
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
    """The folder of this machine that an argument names; None for a URL.

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
    """`device`, if it is the name of one; whether this machine has it is not looked at.

    Raises:
        UserError: it is neither `cpu` nor `cuda` nor `cuda:N`.

    Example:
        >>> check_device("cuda:1")
        'cuda:1'
    """
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise must_be("device", "cpu, cuda or cuda:N", device)
    return device


def local_device(device: object) -> str:
    """The device for this process: of `cuda`, each of several processes takes a GPU of its own.

    Raises:
        UserError: there is no such device on this machine, or it is one for several processes.

    Example:
        >>> own_device("cpu")
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
