"""`laconic evaluate`: quality and cost of a model, and what it lost against the original."""

from functools import partial
from typing import Annotated

import typer

from laconic.cli.options import (
    DeviceOption,
    JsonOption,
    LabelOrderOption,
    LimitOption,
    ModelArgument,
    numbers_from,
    own_device,
    split,
)
from laconic.cli.terminal import progress, show, silence_libraries
from laconic.errors import UserError


def evaluate(
    model: ModelArgument,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK,…",
            help="glue/sst2, lama/trex, blimp, harness/boolq, perplexity:SOURCE, seq2seq:SOURCE; fidelity:SOURCE for "
            "the rows of --against. Without any, the cost alone.",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="ORIGINAL", help="Also say how far MODEL is from this one.")
    ] = None,
    limit: LimitOption = None,
    label_order: LabelOrderOption = None,
    batch: Annotated[str, typer.Option(metavar="N,…", help="Rows at once that are timed.")] = "1,8",
    length: Annotated[str, typer.Option(metavar="N,…", help="Tokens of each row, with every batch.")] = "128",
    runtime: Annotated[
        str, typer.Option(metavar="eager|compile|onnx|openvino", help="What runs MODEL, and ORIGINAL too.")
    ] = "eager",
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Measure the quality and the cost of MODEL. A run that was stopped goes on at the first task that was not done."""
    device = own_device(device)
    batches, lengths = numbers_from("--batch", batch), numbers_from("--length", length)
    names = split(tasks or [])
    if tasks and not names:
        raise UserError("--tasks names no task; give one, like glue/sst2 or perplexity:builtin:pydoc.")
    silence_libraries()
    from laconic.calibrate.batching import tokenizer_of
    from laconic.calibrate.classes import sharing_order
    from laconic.evaluate import Conditions, calibration_sources, check_comparable, check_tasks
    from laconic.evaluate import evaluate as evaluate_model
    from laconic.evaluate.tasks import load_corpus
    from laconic.model import load, load_empty, with_tokenizers
    from laconic.recipe.labels import check_label_order
    from laconic.report.evaluation import evaluation_remarks, evaluation_tables
    from laconic.runtime import check_runtime

    check_runtime(runtime, device)
    under = Conditions(batch=batches, length=lengths, runtime=runtime)
    order = None if label_order is None else split([label_order])
    # Both are looked at before anything of either is read.
    structure, other = load_empty(model), None if against is None else load_empty(against)
    structure = with_tokenizers(structure).with_label_order(order)
    check_label_order(structure)
    if other is not None and names:
        check_comparable(structure, other)
    made = calibration_sources(*filter(None, (model, against)))
    if names:
        tokenizer_of(structure)
    check_tasks(
        names,
        structure,
        compared=against is not None,
        calibration=made,
        runtime=runtime,
        load=partial(load_corpus, limit=limit),
    )
    with progress() as track:
        lm = load(model, device).with_label_order(order)
        original = None if against is None else sharing_order(load(against, device), lm)
        result = evaluate_model(
            lm, names, limit=limit, against=original, cost=under, resume=True, track=track
        ).to_json()
    show(
        result,
        json,
        *(table.to_rich(title) for title, table in evaluation_tables(result).items()),
        *evaluation_remarks(result),
    )
