"""`laconic evaluate`: quality and cost of a model, and what it lost against the original."""

from typing import Annotated

import typer

from laconic.cli.options import DeviceOption, JsonOption, LimitOption, ModelArgument, own_device, split
from laconic.cli.terminal import progress, show
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
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Measure the quality and the cost of MODEL. A run that was stopped goes on at the first task that was not done."""
    from laconic.evaluate import check_tasks, made_with
    from laconic.evaluate import evaluate as evaluate_model
    from laconic.model import check_model, load, skeleton
    from laconic.report.evaluation import remarks_of, tables_of

    device = own_device(device)
    names = split(tasks or [])
    if tasks and not names:
        raise UserError("--tasks names no task; give one, like glue/sst2 or perplexity:builtin:pydoc.")
    task = skeleton(model).task
    if against is not None:
        check_model(against)
    made = made_with(*filter(None, (model, against)))
    check_tasks(names, task, compared=against is not None, calibration=made)
    with progress() as track:
        original = None if against is None else load(against, device)
        lm = load(model, device)
        result = evaluate_model(lm, names, limit=limit, against=original, resume=True, track=track).to_json()
    show(result, json, *(table.to_rich(title) for title, table in tables_of(result).items()), *remarks_of(result))
