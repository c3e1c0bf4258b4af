"""`laconic inspect`: the structure, sizes and weights of a model."""

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
            help="New folder for inspect.html, its figures and inspect.json.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Texts to run MODEL on, to find outliers, and blocks and heads that are alike.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the structure of MODEL, and the size, concentration and redundancy of its weights."""
    silence_libraries()
    from laconic.api.inspect import inspect as inspect_model

    with progress_bars() as track:
        result = inspect_model(model, data=data, output=output, track=track)
    show_result(result, json)
