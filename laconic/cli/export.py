"""`laconic export`: the model for another runtime, checked against the model in torch."""

from functools import partial
from typing import Annotated

import typer

from laconic.cli.options import JsonOption, LabelOrderOption, LimitOption, ModelArgument, OutputOption, split
from laconic.cli.terminal import progress, show, silence_libraries


def export(
    model: ModelArgument,
    to: Annotated[str, typer.Option(metavar="onnx|openvino", help="The runtime that it is for.")],
    output: OutputOption,
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK,…", help="Judge what was exported on these too, as `laconic evaluate` does."),
    ] = None,
    limit: LimitOption = None,
    label_order: LabelOrderOption = None,
    json: JsonOption = False,
) -> None:
    """Write MODEL for ONNX Runtime or OpenVINO to the folder OUT, once it computes what it does in torch."""
    silence_libraries()
    from laconic.calibrate.batching import tokenizer_of
    from laconic.evaluate import check_tasks
    from laconic.evaluate.tasks import load_corpus
    from laconic.export import check_target
    from laconic.export import export as export_model
    from laconic.model import load, load_empty, with_tokenizers
    from laconic.recipe.labels import check_label_order
    from laconic.report.evaluation import evaluation_remarks, evaluation_tables, export_lines, export_table
    from laconic.store import check_output

    check_target(to)
    check_output(output, model)
    names = split(tasks or [])
    order = None if label_order is None else split([label_order])
    structure = with_tokenizers(load_empty(model)).with_label_order(order)
    check_label_order(structure)
    if names:
        tokenizer_of(structure)
    check_tasks(names, structure, compared=True, load=partial(load_corpus, limit=limit))
    with progress() as track:
        lm = load(model).with_label_order(order)
        outcome = export_model(lm, to, output, tasks=names, limit=limit, track=track).to_json()
    tables = {} if outcome["quality"] is None else evaluation_tables(outcome["quality"])
    remarks = [] if outcome["quality"] is None else evaluation_remarks(outcome["quality"])
    layers = [export_table(outcome).to_rich()] if outcome["layers"] else []
    shown = (table.to_rich(title) for title, table in tables.items())
    show(outcome, json, *export_lines(outcome), *layers, *shown, *remarks)
