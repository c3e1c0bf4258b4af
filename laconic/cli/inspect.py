"""`laconic inspect`: what a model consists of and what its weights look like, before anything is done to it."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.cli.options import JsonOption, ModelArgument, new_folder
from laconic.cli.terminal import progress_bars, show_result, silence_libraries


def inspect(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            parser=new_folder,
            help="New folder to write inspect.html, its figures and inspect.json to.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Texts to run MODEL on: they show outliers, and blocks and heads that are alike.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what MODEL consists of, and how large, concentrated and redundant its weights are."""
    silence_libraries()
    from laconic.api.inspect import inspect as inspect_model

    with progress_bars() as track:
        result = inspect_model(model, data=data, output=output, track=track)
    show_result(result, json)
