"""`laconic methods`: every method, what it needs, and where it is from."""

from laconic.cli.options import JsonOption
from laconic.cli.terminal import show


def methods(json: JsonOption = False) -> None:
    """List every method: family, what it needs, paper."""
    from laconic.methods import METHODS
    from laconic.report.tables import Column, Table

    listed = [
        {
            "name": method.name,
            "family": method.family,
            "needs": sorted(statistic.__name__ for statistic in method.needs),
            "paper": method.paper,
            "what": (method.__doc__ or "").strip().splitlines()[0],
        }
        for method in METHODS
    ]
    columns = tuple(Column(heading) for heading in ("method", "family", "needs", "paper", "what it does"))
    rows = tuple(
        (line["name"], line["family"], ", ".join(line["needs"]) or "–", line["paper"], line["what"]) for line in listed
    )
    show({"methods": listed}, json, Table(columns, rows).to_rich())
