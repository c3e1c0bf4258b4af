"""`laconic evaluate`: quality and cost of a model, and its difference from the original."""

from typing import Annotated

import typer

from laconic.api.inputs import check_device
from laconic.cli.options import (
    DeviceOption,
    JsonOption,
    LabelOrderOption,
    LimitOption,
    ModelArgument,
    names_from,
    numbers_from,
)
from laconic.cli.terminal import progress_bars, show_result, silence_libraries
from laconic.errors import UserError


def evaluate(
    model: ModelArgument,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK,…",
            help="Tasks, such as glue/sst2, token-classification:SOURCE, question-answering:SOURCE, "
            "multiple-choice:SOURCE, multi-label:SOURCE, lama/trex, blimp, harness/boolq, perplexity:SOURCE or "
            "seq2seq:SOURCE. fidelity:SOURCE names the rows on which MODEL is compared with --against. Without tasks "
            "only the cost is measured.",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="ORIGINAL", help="The original model, to compare MODEL with.")
    ] = None,
    limit: LimitOption = None,
    label_order: LabelOrderOption = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Batch sizes to time. The default is 1,8; llama.cpp, vllm and exported folders are timed with 1.",
        ),
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(metavar="N,…", help="Sequence lengths to time, each with every batch size. The default is 128."),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="eager|compile|onnx|openvino|llama.cpp|vllm",
            help="The runtime for MODEL and ORIGINAL. llama.cpp and vllm measure perplexity and speed themselves.",
        ),
    ] = "eager",
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Tokens in a window of perplexity. Without it, as many as the model has positions for, up to 2048.",
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="float32|bfloat16",
            help="The dtype of the matrix products of perplexity. bfloat16 is faster on processors that have it, and "
            "changes figures by about a thousandth of a nat.",
        ),
    ] = "float32",
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Read the weights of each block from disk when it runs, for models larger than memory. Only "
            "perplexity and the distance in its windows are measured.",
        ),
    ] = False,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Measure the quality and the cost of MODEL. An interrupted run continues with the first missing task."""
    check_device(device)
    batches = None if batch is None else numbers_from("--batch", batch)
    lengths = None if length is None else numbers_from("--length", length)
    names, order = names_from(tasks or []), None if label_order is None else names_from([label_order])
    if tasks and not names:
        raise UserError("--tasks names no task; give one, like glue/sst2 or perplexity:builtin:pydoc.")
    silence_libraries()
    from laconic.api.evaluate import evaluate as evaluate_model

    with progress_bars() as track:
        result = evaluate_model(
            model, names, against=against, limit=limit, label_order=order, batch=batches, length=lengths,
            runtime=runtime, context=context, dtype=dtype, stream=stream, device=device, track=track,
        )  # fmt: skip
    show_result(result, json)
