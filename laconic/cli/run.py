"""`laconic run`: a recipe from a file, or one that comes with laconic, with values changed on the way."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.cli.options import DeviceOption, JsonOption, OutputOption, own_device
from laconic.cli.shipped import ListOfRecipes
from laconic.cli.terminal import progress, silence_libraries
from laconic.shipped import located
from laconic.yaml_loader import text_of


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of one of --list, like sst2-kfac-svd.")
    ],
    output: OutputOption,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Like steps[0].compress.keep=0.3.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN.yaml", help="Use this plan in place of the recipe's budget.")
    ] = None,
    device: DeviceOption = "cpu",
    list_names: ListOfRecipes = False,
    json: JsonOption = False,
) -> None:
    """Run a recipe, and write the model to the folder OUT."""
    device = own_device(device)
    # What cannot be read is told of before seconds are spent on imports.
    file = located(recipe, "recipe")
    text = text_of(file, "recipe")
    silence_libraries()
    from laconic.allocate import read_plan
    from laconic.cli.record import show_record
    from laconic.recipe import parse_recipe
    from laconic.recipe import run as run_recipe
    from laconic.recipe.schema import with_plan

    what = parse_recipe(text, file, overrides or ())
    if plan is not None:
        what = with_plan(what, read_plan(plan))
    with progress() as track:
        record = run_recipe(what, output, track=track, device=device)
    show_record(record, json)
