"""`laconic export`: write a model for another runtime, and compare it with the model in torch."""

from typing import Annotated

import typer

from laconic.cli.options import JsonOption, LabelOrderOption, LimitOption, ModelArgument, OutputOption, names_from
from laconic.cli.terminal import progress_bars, show_result, silence_libraries


def export(
    model: ModelArgument,
    to: Annotated[
        str,
        typer.Option(metavar="onnx|openvino|gguf|compressed-tensors|gptq", help="The runtime or format to export to."),
    ],
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
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            help="For onnx and openvino: write a graph that reads a whole prompt at every call. By default models that "
            "write text get a cache of keys and values.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Export MODEL to another runtime in the folder OUT, if its outputs there equal those of torch."""
    names, order = names_from(tasks or []), None if label_order is None else names_from([label_order])
    silence_libraries()
    from laconic.api.export import export as export_model

    with progress_bars() as track:
        result = export_model(
            model, to, output, tasks=names, limit=limit, label_order=order, cache=not no_cache, track=track
        )
    show_result(result, json)
