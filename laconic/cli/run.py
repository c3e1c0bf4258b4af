"""`laconic run`: a recipe from a file, or one that comes with laconic, with some of its values replaced."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.api.inputs import check_device, read_document
from laconic.cli.options import DeviceOption, JsonOption, ListOfRecipes, OutputOption
from laconic.cli.terminal import progress_bars, show_result, silence_libraries


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name from --list, such as sst2-kfac-svd.")
    ],
    output: OutputOption,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="Values of the recipe to replace, as steps[0].compress.keep=0.3."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="PLAN.yaml", help="Plan that replaces the budget of the recipe's compress step."),
    ] = None,
    device: DeviceOption = "cpu",
    list_names: ListOfRecipes = False,
    json: JsonOption = False,
) -> None:
    """Run a recipe, and write the model to the folder OUT."""
    check_device(device)
    # A file that cannot be read is reported before seconds are spent on imports.
    document = read_document(recipe, "recipe", overrides=overrides or ())
    silence_libraries()
    from laconic.api.run import run as run_recipe

    with progress_bars() as track:
        result = run_recipe(document, output, plan=plan, device=device, track=track)
    show_result(result, json)
