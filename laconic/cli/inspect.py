"""`laconic inspect`: what a model consists of, before anything is done to it."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.cli.options import JsonOption, ModelArgument
from laconic.cli.terminal import progress, show


def inspect(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Also write inspect.json and a figure to this new folder."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the stacks, the matrices and the size of each part of MODEL."""
    from laconic.model import load
    from laconic.recipe.run import check_output
    from laconic.report.anatomy import inspect as inspect_model

    if output is not None:
        check_output(output)
    with progress():
        seen = inspect_model(load(model))
    stacks = ", ".join(f"{path} ({blocks} blocks)" for path, blocks in seen.stacks)
    head = f"{seen.model}: {seen.architecture}, {seen.task}, stored as {seen.dtype}\nStacks: {stacks}"
    if output is not None:
        _write(seen.to_json(), {part.name: part.nbytes for part in seen.parts}, output)
    show(seen.to_json(), json, head, seen.table().to_rich())


def _write(seen: dict[str, object], sizes: dict[str, int], folder: Path) -> None:
    import json

    from laconic.report import plots
    from laconic.store.atomic import new_folder

    with new_folder(folder) as partial:
        plots.save(plots.parts(sizes), partial / "size-by-part")
        (partial / "inspect.json").write_text(json.dumps(seen, indent=1))
