"""`laconic methods`: every method, what it needs and where it is from, and every step that is named like one."""

from laconic.cli.options import JsonOption
from laconic.cli.terminal import show


def methods(json: JsonOption = False) -> None:
    """List every method, with family, needs and paper, and every step."""
    from laconic.compress import Compress
    from laconic.methods import METHODS
    from laconic.recipe.steps import STEPS
    from laconic.report.tables import Column, Table

    listed = [
        {
            "name": method.name,
            "family": method.family,
            "needs": sorted(statistic.__name__ for statistic in method.needs),
            "paper": method.paper,
            "what": _what(method),
        }
        for method in METHODS
    ]
    # A method's own step is what lifts it to a model.
    steps = [{"name": step.name, "what": _what(step)} for step in STEPS if step is not Compress]
    columns = tuple(Column(heading) for heading in ("method", "family", "needs", "paper", "what it does"))
    rows = tuple(
        (line["name"], line["family"], ", ".join(line["needs"]) or "–", line["paper"], line["what"]) for line in listed
    )
    more = tuple((step["name"], "step", "–", "–", step["what"]) for step in steps)
    show({"methods": listed, "steps": steps}, json, Table(columns, rows + more).to_rich())


def _what(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]
