"""The reference pages of the command line and of methods and steps, made from the program and its catalogue.

`python -m tools.reference` writes them. A test fails if a page is out of date.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from laconic.catalogue import Entry, catalogue
from laconic.cli.main import app

DOCS = Path(__file__).parents[1] / "docs"
NOTE = "<!-- written by `python -m tools.reference` -->"
FAMILIES = {
    "low rank": "Low rank",
    "pruning": "Pruning",
    "quantization": "Quantization",
    "combination": "Combination",
    "step": "Steps",
}


def command_line() -> str:
    """One section per verb: what it does, how it is called, its arguments and options."""
    lines = [
        "# Command line",
        "",
        NOTE,
        "",
        "`laconic VERB --help` prints the same. Every verb takes `--json`, which prints one JSON object to stdout and "
        "progress to stderr. The exit status is 0 on success, 2 after an error (one sentence on stderr names the "
        "place, the value and the remedy), 130 after Ctrl-C.",
    ]
    for name, command in typer.main.get_command(app).commands.items():
        lines += ["", f"## laconic {name}", "", _text(command.help), "", *_parameters(command)]
    return "\n".join([*lines, ""])


def _parameters(command: Any) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    words = " ".join(one.metavar for one in arguments)
    yield f"```text\nlaconic {command.name} {words + ' ' if words else ''}[OPTIONS]\n```"
    yield ""
    yield "| argument or option | meaning | default |"
    yield "|---|---|---|"
    for one in command.params:
        if one.name == "help":
            continue
        spelled = ", ".join(f"`{option}`" for option in one.opts) if one not in arguments else f"`{one.metavar}`"
        takes = f" {_value(one.metavar)}" if one not in arguments and one.metavar and not one.is_flag else ""
        default = (
            "required"
            if one.required
            else ""
            if one.default is None or one.default is False or one.default == ()
            else f"`{_shown(one.default)}`"
        )
        yield f"| {spelled}{takes} | {_cell(_text(one.help))} | {default} |"


def methods() -> str:
    """One section per method and step: what it does, its paper, its parameters, an example."""
    lines = [
        "# Methods and steps",
        "",
        NOTE,
        "",
        "`laconic methods NAME` prints the same. On the command line a parameter follows the name: "
        "`--method gptq:bits=4,group_size=64`. In a recipe it stands below it: `{gptq: {bits: 4, group_size: 64}}`.",
    ]
    entries = list(catalogue().values())
    for family in dict.fromkeys(map(_family, entries)):
        lines += ["", f"## {FAMILIES.get(family, family.capitalize())}"]
        for entry in entries:
            if _family(entry) == family:
                lines += ["", *_entry(entry)]
    return "\n".join([*lines, ""])


def _family(entry: Entry) -> str:
    return "step" if entry.is_step else entry.family


def _entry(entry: Entry) -> Iterator[str]:
    yield f"### `{entry.name}`"
    yield ""
    yield entry.what
    facts = []
    if entry.is_step:
        facts += [f"Family: {entry.family}."] if entry.family else []
        if entry.name != "compress":
            facts.append(f"The example needs {'calibration' if entry.needs_data else 'no'} data.")
    if entry.paper:
        facts.append(f"Paper: {entry.paper}.")
    if entry.needs:
        facts.append(f"Statistics that it needs: {', '.join(f'`{name}`' for name in entry.needs)}.")
    if facts:
        yield ""
        yield " ".join(facts)
    if entry.parameters:
        yield ""
        yield "| parameter | type | default | meaning |"
        yield "|---|---|---|---|"
        for one in entry.parameters:
            default = "required" if one.default is None else f"`{one.default}`"
            yield f"| `{one.name}` | {_cell(one.type)} | {default} | {_cell(one.meaning)} |"
    yield ""
    yield f"```text\n{entry.example}\n```"


def _text(help_text: str | None) -> str:
    return " ".join((help_text or "").split())


def _value(metavar: str) -> str:
    """The value of an option, for a cell of a Markdown table; a bar inside of code would end the cell."""
    return " or ".join(f"`{value}`" for value in metavar.strip("<>").split("|"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


PAGES = {"reference/command-line.md": command_line, "reference/methods.md": methods}


def write() -> None:
    """Write both pages."""
    for name, page in PAGES.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write()
