"""Options that several verbs share, and functions that read their values.

`Verb` refuses an option that is given twice. `--list` and `--version` print and end the program.
"""

import platform
import re
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from laconic.builtin_recipes import Kind, descriptions
from laconic.cli.terminal import show
from laconic.errors import UserError, must_be
from laconic.imports import installed_version
from laconic.report.tables import Column, Table

LARGEST_COUNT = 2**31 - 1
"""The largest batch or sequence length: what fits into 32 bits."""
RAW_VALUES = "laconic.raw_values"
"""The key in `ctx.meta` of the options before they are parsed, for options that run before others are read."""


class Verb(TyperCommand):
    """A command that refuses an option of one value if it is given twice; typer would use the last value.

    An error about an argument of a Python function begins with its name, which becomes the option here.
    """

    # The parser's own Context is private to typer.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[RAW_VALUES] = values
        for option, times in Counter(option for option in order if isinstance(option, TyperOption)).items():
            if times > 1 and not (option.multiple or option.is_flag):
                ctx.fail(f"The option '{option.opts[0]}' is given {times} times; give it once.")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            options = {part.name: part.opts[0] for part in self.params if isinstance(part, TyperOption)}
            # `keep.experts` is written as the option takes it. The name of a file, as `data.jsonl`, is no argument.
            sentence = re.sub(r"^keep\.(?=\w)", "keep ", str(error))
            name = re.match(r"\w+(?=[ :\[])|method(?=\.)", sentence)
            if name is not None and name[0] in options:
                sentence = f"{options[name[0]]}{sentence[name.end() :]}"
            error.args = (sentence,)
            raise


def new_folder(text: str) -> Path:
    """The folder that an option names. An empty name is refused, because it would mean the working folder."""
    if not text.strip():
        raise typer.BadParameter("it must name a folder; got ''.", param_hint="--output")
    return Path(text)


def _list_option(kind: Kind, plural: str) -> Any:
    """The option `--list`, which prints the built-in recipes or studies and ends the program."""

    def print_list(context: typer.Context, is_given: bool) -> None:
        if not is_given:
            return
        sentences = descriptions(kind)
        table = Table((Column("name"), Column("what it does")), tuple(sentences.items()))
        lines = [{"name": name, "what": sentence} for name, sentence in sentences.items()]
        show({plural: lines}, bool(context.meta[RAW_VALUES].get("json")), table.to_rich())
        raise typer.Exit

    sentence = f"Print the names of the {plural} that come with laconic, and exit."
    return typer.Option("--list", callback=print_list, is_eager=True, help=sentence)


def show_version(is_given: bool) -> None:
    """The callback of `--version`: print the versions of laconic, Python, torch and transformers, and end."""
    if not is_given:
        return
    others = f"python {platform.python_version()}, torch {_version('torch')}, transformers {_version('transformers')}"
    typer.echo(f"laconic {installed_version()} ({others})")
    raise typer.Exit


def _version(package: str) -> str:
    """The version of an installed package. It is not imported, because that takes seconds."""
    try:
        return version(package)
    except PackageNotFoundError:
        return import_module(package).__version__


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder with a saved model, a hub name, or a GGUF file.")
]
OutputOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="OUT", parser=new_folder, help="The folder to write. It must not exist."),
]
DeviceOption = Annotated[str, typer.Option(help="Device to compute on: cpu, cuda, or a single GPU such as cuda:1.")]
LimitOption = Annotated[
    int | None, typer.Option(metavar="ROWS", help="Maximum rows of each task. The default is all rows.", min=1)
]
LabelOrderOption = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS,…",
        help="Class names in the order of the outputs of MODEL, as the data spells them. The default is the order in "
        "config.json.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only estimate time, memory and disk space, from a run on one block of each kind. OUT is not written.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
ListOfRecipes = Annotated[bool, _list_option("recipe", "recipes")]
ListOfStudies = Annotated[bool, _list_option("study", "studies")]


def names_from(values: Sequence[str]) -> tuple[str, ...]:
    """Split the values of an option that may be repeated, at commas."""
    return tuple(item.strip() for value in values for item in value.split(",") if item.strip())


def numbers_from(place: str, text: str) -> tuple[int, ...]:
    """Whole numbers above zero from text like `1,8`, each once.

    Raises:
        UserError: the text has another form.
    """
    items = names_from([text])
    # Twenty digits are more than any count has.
    if not items or any(not item.isdecimal() or int(item[:20]) < 1 for item in items):
        raise must_be(place, "whole numbers above 0, like 1,8", text)
    if any(int(item[:20]) > LARGEST_COUNT for item in items):
        raise must_be(place, f"at most {LARGEST_COUNT}", text)
    return tuple(dict.fromkeys(map(int, items)))


def keep_from(text: str | None) -> float | dict[str, float] | None:
    """The fraction in text like `0.5`, or one for each group in `attention=0.5,ffn=0.3`.

    Raises:
        UserError: a number is not in (0, 1], or a group has none or two.
    """
    if text is None:
        return None
    if "=" not in text:
        return _fraction("--keep", text)
    keeps: dict[str, float] = {}
    for item in names_from([text]):
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
