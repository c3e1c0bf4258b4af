"""`laconic methods`: all methods and steps, or one of them with its parameters."""

import re
from collections.abc import Sequence
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
    methods = [entry for entry in entries.values() if not entry.is_step]
    steps = [entry for entry in entries.values() if entry.is_step and entry.name != COMPRESS]
    families = dict.fromkeys(entry.family for entry in methods)
    groups = {f"Methods: {family}": [entry for entry in methods if entry.family == family] for family in families}
    from_plugins = any(entry.distribution for entry in (*methods, *steps))
    tables = [_table(group, from_plugins).to_rich(title) for title, group in (groups | {"Steps": steps}).items()]
    result = {
        "methods": [{**_facts(entry), "what": entry.what} for entry in methods],
        "steps": [{**_facts(entry), "what": entry.what} for entry in steps],
    }
    show(result | ({"failed": list(map(str, errors))} if errors else {}), json, *tables, *map(str, errors))


def _table(entries: Sequence[Entry], from_plugins: bool) -> Table:
    """The table of the methods of one family, or of all steps; `from_plugins` adds a column for the distribution."""
    columns = [
        (Column("name"), lambda entry: entry.name),
        (Column("needs"), _needs),
        (Column("what it does"), lambda entry: entry.what),
    ]
    if entries[0].is_step:
        columns.insert(1, (Column("family"), lambda entry: entry.family or None))
    else:
        columns.insert(2, (Column("paper"), lambda entry: entry.paper))
    if from_plugins:
        columns.append((Column("from"), lambda entry: entry.distribution or OWN))
    return Table.of(entries, *columns)


def _show(entry: Entry, json: bool) -> None:
    head = [f"{entry.name}: {entry.what}"]
    head += [f"Family: {entry.family}"] if entry.family else []
    head += [f"Paper: {entry.paper}"] if entry.paper else []
    # The needs of `compress` are those of its method.
    head += [] if entry.name == COMPRESS else [f"Needs: {_needs(entry).replace(chr(10), ', ')}"]
    if entry.distribution is not None:
        head += [f"From: {entry.distribution}"]
    columns = tuple(Column(heading) for heading in ("parameter", "type", "default", "meaning"))
    rows = tuple(
        (parameter.name, parameter.type, parameter.default or "required", parameter.meaning)
        for parameter in entry.parameters
    )
    tables = [Table(columns, rows).to_rich()] if rows else ["It has no parameters."]
    result = {
        **_facts(entry),
        "what": entry.what,
        "parameters": [asdict(parameter) for parameter in entry.parameters],
        "example": entry.example,
    }
    show(result, json, *head, *tables, f"Example: {entry.example}")


def _needs(entry: Entry) -> str:
    """The statistics of a method, one a line; for others whether the example needs data."""
    return "\n".join(entry.needs) or ("data" if entry.needs_data else "no data")


def _facts(entry: Entry) -> dict[str, Any]:
    """The facts that `--json` prints of a method or a step, and the distribution of that of a plug-in."""
    own = {"needs_data": entry.needs_data} if entry.is_step else {"needs": list(entry.needs), "paper": entry.paper}
    origin = {} if entry.distribution is None else {"distribution": entry.distribution}
    return {"name": entry.name, "family": entry.family, **own, **origin}
