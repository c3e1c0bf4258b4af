"""`laconic export`: the model for another runtime, checked against the model in torch."""

from typing import Annotated

import typer

from laconic.cli.options import JsonOption, LabelOrderOption, LimitOption, ModelArgument, OutputOption, names_from
from laconic.cli.terminal import progress_bars, show_result, silence_libraries


def export(
    model: ModelArgument,
    to: Annotated[str, typer.Option(metavar="onnx|openvino", help="The runtime to write it for.")],
    output: OutputOption,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK,…",
            help="Tasks of `laconic evaluate` on which the exported model must be as good as the model in torch.",
        ),
    ] = None,
    limit: LimitOption = None,
    label_order: LabelOrderOption = None,
    json: JsonOption = False,
) -> None:
    """Write MODEL for ONNX Runtime or OpenVINO to the folder OUT, if it computes the same there as in torch."""
    names, order = names_from(tasks or []), None if label_order is None else names_from([label_order])
    silence_libraries()
    from laconic.api.export import export as export_model

    with progress_bars() as track:
        result = export_model(model, to, output, tasks=names, limit=limit, label_order=order, track=track)
    show_result(result, json)
