"""`--list` of `run` and `study`: what comes with laconic, by the names that these verbs take."""

from collections.abc import Callable
from typing import Annotated

import typer

from laconic.cli.once import asked
from laconic.cli.terminal import show
from laconic.report.tables import Column, Table
from laconic.shipped import Kind, described


def lister(kind: Kind, plural: str) -> Callable[[typer.Context, bool], None]:
    """What the option does: print the names, and end the program."""

    def show_list(context: typer.Context, wanted: bool) -> None:
        if not wanted:
            return
        what = described(kind)
        table = Table((Column("name"), Column("what it does")), tuple(what.items()))
        lines = [{"name": name, "what": said} for name, said in what.items()]
        show({plural: lines}, bool(asked(context, "json")), table.to_rich())
        raise typer.Exit

    return show_list


ListOfRecipes = Annotated[
    bool,
    typer.Option("--list", callback=lister("recipe", "recipes"), is_eager=True, help="Name the recipes, and exit."),
]
ListOfStudies = Annotated[
    bool,
    typer.Option("--list", callback=lister("study", "studies"), is_eager=True, help="Name the studies, and exit."),
]
