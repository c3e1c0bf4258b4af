"""`laconic advise`: the ways of storing a model that are fast in a runtime on this machine."""

from typing import Annotated

import typer

from laconic.cli.options import JsonOption, ModelArgument
from laconic.cli.terminal import progress_bars, show_result, silence_libraries


def advise(
    model: ModelArgument,
    runtime: Annotated[
        str, typer.Option(metavar="eager|compile|onnx|openvino|llama.cpp|vllm", help="The runtime that serves MODEL.")
    ] = "eager",
    batch: Annotated[int, typer.Option(metavar="N", help="Rows of a batch.")] = 1,
    length: Annotated[int, typer.Option(metavar="N", help="Tokens of a row, or of a prompt.")] = 128,
    json: JsonOption = False,
) -> None:
    """Measure how fast MODEL is in a runtime if its matrices are stored in other ways. Nothing is written."""
    silence_libraries()
    from laconic.api.advise import advise as advise_on_model

    with progress_bars() as track:
        result = advise_on_model(model, runtime, batch=batch, length=length, track=track)
    show_result(result, json)
