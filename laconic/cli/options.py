"""The options that several verbs share, and how their values are read."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from laconic.errors import UserError, must_be

LARGEST_COUNT = 2**31 - 1
"""The largest batch or sequence length that is taken: what 32 bits hold."""


def new_folder(text: str) -> Path:
    """The folder that an option names; the empty name would be read as the working folder."""
    if not text.strip():
        raise typer.BadParameter("it must name a folder; got ''.", param_hint="--output")
    return Path(text)


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A saved folder, a hub name or a GGUF file.")]
OutputOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="OUT", parser=new_folder, help="The folder to write; it must not exist."),
]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ….")]
LimitOption = Annotated[int | None, typer.Option(metavar="ROWS", help="Rows of each task at most.", min=1)]
LabelOrderOption = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS,…",
        help="The classes of MODEL in the order of its outputs, as the data calls them [config.json's names].",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def split(values: Sequence[str]) -> tuple[str, ...]:
    """The items of an option that is given several times, or once with commas."""
    return tuple(item.strip() for value in values for item in value.split(",") if item.strip())


def numbers_from(place: str, text: str) -> tuple[int, ...]:
    """`1,8` as whole numbers above zero.

    Raises:
        UserError: something else.
    """
    items = split([text])
    # What follows the first digits changes nothing where there are more than any count has.
    if not items or any(not item.isdecimal() or int(item[:20]) < 1 for item in items):
        raise must_be(place, "whole numbers above 0, like 1,8", text)
    if any(int(item[:20]) > LARGEST_COUNT for item in items):
        raise must_be(place, f"at most {LARGEST_COUNT}", text)
    return tuple(dict.fromkeys(map(int, items)))


def keep_from(text: str | None) -> float | dict[str, float] | None:
    """`0.5`, or `attention=0.5,ffn=0.3`, or nothing.

    Raises:
        UserError: not a number in (0, 1], or a group without one.
    """
    if text is None:
        return None
    if "=" not in text:
        return _fraction("--keep", text)
    keeps: dict[str, float] = {}
    for item in split([text]):
        group, equals, value = item.partition("=")
        if not equals:
            raise must_be("--keep", "one number, or GROUP=number for every group", text)
        if group.strip() in keeps:
            raise UserError(f"--keep {group.strip()} is given twice; give it once.")
        keeps[group.strip()] = _fraction(f"--keep {group.strip()}", value)
    return keeps


def _fraction(place: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise must_be(place, "a number in (0, 1]", text) from error
    if not 0 < value <= 1:
        raise must_be(place, "in (0, 1]", value)
    return value


def own_device(device: str) -> str:
    """The device that an option names, for this process.

    Raises:
        UserError: there is no such device on this machine, or it is one for several processes.
    """
    if device == "cpu":
        return device
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise must_be("--device", "cpu, cuda or cuda:N", device)
    import torch

    from laconic import processes

    try:
        device = processes.own_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device '{device}' is not available here; use cpu, or a device that torch sees.") from error
    return device
