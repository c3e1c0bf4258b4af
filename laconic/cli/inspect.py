"""`laconic inspect`: what a model consists of and what its weights look like, before anything is done to it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laconic.cli.options import JsonOption, ModelArgument, new_folder
from laconic.cli.terminal import progress, show, silence_libraries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laconic.report.inspection.page import CaptionedFigure


ROWS = 64
"""Of the training split of --data, drawn with seed 0."""


def inspect(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            parser=new_folder,
            help="Also write inspect.html, its figures and inspect.json to this folder.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Also run MODEL on texts: outliers, and blocks and heads that are alike."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what MODEL consists of, and how large, concentrated and redundant its weights are."""
    silence_libraries()
    from laconic.calibrate.corpus import read
    from laconic.model import check_model, load, with_tokenizers
    from laconic.recipe.flow import Sampling
    from laconic.recipe.run import check_output
    from laconic.report.anatomy import inspect as inspect_model
    from laconic.report.inspection.activity import measure_activity
    from laconic.report.inspection.narrative import paragraphs
    from laconic.report.inspection.page import draw_figures, inspection_page, inspection_tables
    from laconic.report.inspection.weights import weight_statistics
    from laconic.store import skeleton

    if output is not None:
        output = check_output(output, model)
    check_model(model)
    with progress() as track:
        corpus = None
        if data is not None:
            corpus = Sampling(samples=ROWS).of(with_tokenizers(skeleton(model)), read(data, "train"), track)
        lm = load(model)
        seen, weights = inspect_model(lm), weight_statistics(lm, track)
        found = None if corpus is None else measure_activity(lm, corpus, data or "")
    told = paragraphs(weights, found)
    result = {**seen.to_json(), "words": told, "weights": weights.to_json()}
    result |= {} if found is None else {"activity": found.to_json()}
    if output is not None:
        drawn = draw_figures(seen, weights, found)
        _write(result, drawn, inspection_page(seen, weights, found, drawn), output)
    stacks = ", ".join(f"{path} ({blocks} blocks)" for path, blocks in seen.stacks)
    head = f"{seen.model}: {seen.architecture}, {seen.task}, stored as {seen.dtype}\nStacks: {stacks}"
    if seen.idle:
        idle = ", ".join(f"{path} ({blocks} blocks)" for path, blocks in seen.idle)
        head += f"\nNot called by text, so left as they are: {idle}"
    head += "".join(f"\n{name}: {said}" for name, said in seen.embedding_notes())
    head += f"\n{seen.dense_note()}" if seen.dense is not None else ""
    tables = (table.to_rich(title) for title, table in inspection_tables(weights, found).items())
    show(result, json, head, seen.table().to_rich(), *tables, *(f"{paragraph}\n" for paragraph in told))


def _write(result: "dict[str, Any]", drawn: "Mapping[str, CaptionedFigure]", html: str, folder: Path) -> None:
    import json

    from laconic.report import plots
    from laconic.store.atomic import new_folder

    with new_folder(folder) as partial:
        for name, drawing in drawn.items():
            plots.save(drawing.figure, partial / name)
        (partial / "inspect.html").write_text(html, encoding="utf-8")
        (partial / "inspect.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
