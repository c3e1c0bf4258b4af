"""`laconic methods`: all methods and steps, or one of them with its parameters."""

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from laconic.catalogue import Entry, catalogue
from laconic.cli.options import JsonOption
from laconic.cli.terminal import show, silence_libraries
from laconic.errors import UserError, quote, unknown
from laconic.registry import plugins
from laconic.report.tables import Column, Table

COMPRESS = "compress"
"""The step that applies a method to a model. It is not listed, because `--method` does not take it."""
OWN = "laconic"


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The method or step to show with its parameters and an example."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List all methods and steps with family, required statistics and paper; or show one of them."""
    if name is None:
        _list(json)
        return
    # A value for --method, such as `svd:rank=3`, begins with a name too.
    method_name, *rest = (part.strip() for part in re.split(r"[:=,(\s]", name.strip(), maxsplit=1))
    added = {plugin.name for plugin in plugins("laconic.methods", "laconic.steps")}
    if method_name not in catalogue() and method_name not in added:
        raise unknown("method or step", method_name or name, [*catalogue(), *added])
    if rest:
        raise UserError(
            f"NAME must be a name without parameters; got {quote(name)}; parameters are for "
            f"`laconic compress --method`, and `laconic methods {method_name}` lists them."
        )
    if method_name not in added:
        _show(catalogue()[method_name], json)
        return
    silence_libraries()
    from laconic.recipe.catalogue import plugin_entry

    _show(plugin_entry(method_name), json)


def _list(json: bool) -> None:
    entries, errors = dict(catalogue()), list[UserError]()
    if plugins("laconic.methods", "laconic.steps"):
        silence_libraries()
        from laconic.recipe.catalogue import plugin_entries

        added, errors = plugin_entries()
        entries |= added
    methods = [{**_facts(entry), "what": entry.what} for entry in entries.values() if not entry.is_step]
    steps = [
        {"name": entry.name, "what": entry.what, **_origin(entry)}
        for entry in entries.values()
        if entry.is_step and entry.name != COMPRESS
    ]
    headings = ["method", "family", "needs", "paper", "what it does", "from"]
    rows = [
        (line["name"], line["family"], ", ".join(line["needs"]) or "–", line["paper"], line["what"]) for line in methods
    ]
    rows += [(line["name"], "step", "–", "–", line["what"]) for line in steps]
    origins = [line.get("distribution", OWN) for line in (*methods, *steps)]
    # The last column is for plug-ins.
    columns = tuple(Column(heading) for heading in (headings if set(origins) > {OWN} else headings[:-1]))
    cells = tuple((*row, origin)[: len(columns)] for row, origin in zip(rows, origins, strict=True))
    result = {"methods": methods, "steps": steps} | ({"failed": list(map(str, errors))} if errors else {})
    show(result, json, Table(columns, cells).to_rich(), *map(str, errors))


def _show(entry: Entry, json: bool) -> None:
    about = {"name": entry.name, "family": entry.family, **_origin(entry)} if entry.is_step else _facts(entry)
    head = [f"{entry.name}: {entry.what}", f"Family: {entry.family}"]
    if not entry.is_step:
        head += [f"Paper: {entry.paper}", f"Needs: {', '.join(entry.needs) or 'no data'}"]
    if entry.distribution is not None:
        head += [f"From: {entry.distribution}"]
    columns = tuple(Column(heading) for heading in ("parameter", "type", "default", "meaning"))
    rows = tuple(
        (parameter.name, parameter.type, parameter.default or "required", parameter.meaning)
        for parameter in entry.parameters
    )
    tables = [Table(columns, rows).to_rich()] if rows else ["It has no parameters."]
    result = {
        **about,
        "what": entry.what,
        "parameters": [asdict(parameter) for parameter in entry.parameters],
        "example": entry.example,
    }
    show(result, json, *head, *tables, f"Example: {entry.example}")


def _facts(entry: Entry) -> dict[str, Any]:
    about = {"name": entry.name, "family": entry.family, "needs": list(entry.needs), "paper": entry.paper}
    return about | _origin(entry)


def _origin(entry: Entry) -> dict[str, str]:
    """The distribution of a plug-in's method or step; empty for those of laconic."""
    return {} if entry.distribution is None else {"distribution": entry.distribution}
