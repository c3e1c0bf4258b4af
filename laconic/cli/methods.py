"""`laconic methods`: every method and every step that is named like one, or one of them with its parameters."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laconic.cli.options import JsonOption
from laconic.cli.terminal import show

if TYPE_CHECKING:
    from laconic.compress import Step
    from laconic.methods import Method


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, shown with its parameters and an example.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List every method, with family, needs and paper, and every step; or show one."""
    from laconic.errors import UserError, shown, unknown
    from laconic.recipe.parameters import KINDS

    if name is None:
        _list(json)
        return
    # What is written for --method, `svd:rank=3`, names a method too.
    alone, *rest = (part.strip() for part in re.split(r"[:=,(\s]", name.strip(), maxsplit=1))
    if alone not in KINDS:
        raise unknown("method or step", alone or name, KINDS)
    if rest:
        raise UserError(
            f"NAME must be a name without parameters; got {shown(name)}; these are for `laconic compress --method`, "
            f"and `laconic methods {alone}` says which there are."
        )
    _show(KINDS[alone], json)


def _list(json: bool) -> None:
    from laconic.compress import Compress
    from laconic.methods import METHODS
    from laconic.recipe.parameters import first_line
    from laconic.recipe.steps import STEPS
    from laconic.report.tables import Column, Table

    listed = [{**_about(method), "what": first_line(method)} for method in METHODS]
    # A method's own step is what lifts it to a model.
    steps = [{"name": step.name, "what": first_line(step)} for step in STEPS if step is not Compress]
    columns = tuple(Column(heading) for heading in ("method", "family", "needs", "paper", "what it does"))
    rows = tuple(
        (line["name"], line["family"], ", ".join(line["needs"]) or "–", line["paper"], line["what"]) for line in listed
    )
    more = tuple((step["name"], "step", "–", "–", step["what"]) for step in steps)
    show({"methods": listed, "steps": steps}, json, Table(columns, rows + more).to_rich())


def _show(kind: "type[Method] | type[Step]", json: bool) -> None:
    from dataclasses import asdict

    from laconic.methods import Method
    from laconic.recipe.parameters import example_of, first_line, parameters_of
    from laconic.report.tables import Column, Table

    parameters, example = parameters_of(kind), example_of(kind)
    about = _about(kind) if issubclass(kind, Method) else {"name": kind.name, "family": "step"}
    head = [f"{kind.name}: {first_line(kind)}", f"Family: {about['family']}"]
    if issubclass(kind, Method):
        head += [f"Paper: {kind.paper}", f"Needs: {', '.join(about['needs']) or 'no data'}"]
    columns = tuple(Column(heading) for heading in ("parameter", "type", "default", "meaning"))
    rows = tuple((one.name, one.type, one.default or "to be given", one.meaning) for one in parameters)
    tables = [Table(columns, rows).to_rich()] if rows else ["It has no parameters."]
    result = {
        **about,
        "what": first_line(kind),
        "parameters": [asdict(one) for one in parameters],
        "example": example,
    }
    show(result, json, *head, *tables, f"Example: {example}")


def _about(method: "type[Method]") -> dict[str, Any]:
    return {
        "name": method.name,
        "family": method.family,
        "needs": sorted(statistic.__name__ for statistic in method.needs),
        "paper": method.paper,
    }
