"""`laconic methods`: all methods and steps, or one of them with its parameters."""

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from laconic.catalogue import Entry, catalogue
from laconic.cli.options import JsonOption
from laconic.cli.terminal import show
from laconic.errors import UserError, shown, unknown
from laconic.report.tables import Column, Table

COMPRESS = "compress"
"""The step that applies a method to a model. Recipes name it, but `--method` does not, so it is not listed."""


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A method or step to show with its parameters and an example."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List all methods, with family, statistics that they need and paper, and all steps; or show one."""
    if name is None:
        _list(json)
        return
    # A value for --method, such as `svd:rank=3`, begins with a name too.
    alone, *rest = (part.strip() for part in re.split(r"[:=,(\s]", name.strip(), maxsplit=1))
    if alone not in catalogue():
        raise unknown("method or step", alone or name, catalogue())
    if rest:
        raise UserError(
            f"NAME must be a name without parameters; got {shown(name)}; these are for `laconic compress --method`, "
            f"and `laconic methods {alone}` says which there are."
        )
    _show(catalogue()[alone], json)


def _list(json: bool) -> None:
    entries = catalogue().values()
    listed = [{**_facts(entry), "what": entry.what} for entry in entries if not entry.is_step]
    steps = [{"name": entry.name, "what": entry.what} for entry in entries if entry.is_step and entry.name != COMPRESS]
    columns = tuple(Column(heading) for heading in ("method", "family", "needs", "paper", "what it does"))
    rows = tuple(
        (line["name"], line["family"], ", ".join(line["needs"]) or "–", line["paper"], line["what"]) for line in listed
    )
    more = tuple((step["name"], "step", "–", "–", step["what"]) for step in steps)
    show({"methods": listed, "steps": steps}, json, Table(columns, rows + more).to_rich())


def _show(entry: Entry, json: bool) -> None:
    about = {"name": entry.name, "family": entry.family} if entry.is_step else _facts(entry)
    head = [f"{entry.name}: {entry.what}", f"Family: {entry.family}"]
    if not entry.is_step:
        head += [f"Paper: {entry.paper}", f"Needs: {', '.join(entry.needs) or 'no data'}"]
    columns = tuple(Column(heading) for heading in ("parameter", "type", "default", "meaning"))
    rows = tuple((one.name, one.type, one.default or "to be given", one.meaning) for one in entry.parameters)
    tables = [Table(columns, rows).to_rich()] if rows else ["It has no parameters."]
    result = {
        **about,
        "what": entry.what,
        "parameters": [asdict(one) for one in entry.parameters],
        "example": entry.example,
    }
    show(result, json, *head, *tables, f"Example: {entry.example}")


def _facts(entry: Entry) -> dict[str, Any]:
    return {"name": entry.name, "family": entry.family, "needs": list(entry.needs), "paper": entry.paper}
