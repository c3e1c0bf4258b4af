"""`laconic compress`: one or several methods on one model; it prints the recipe that it stands for."""

from typing import Annotated

import typer

from laconic.cli.options import (
    DeviceOption,
    JsonOption,
    LabelOrderOption,
    ModelArgument,
    OutputOption,
    keep_from,
    own_device,
    split,
)
from laconic.cli.terminal import progress, silence_libraries
from laconic.errors import UserError, must_be
from laconic.named import check_name


def compress(
    model: ModelArgument,
    output: OutputOption,
    method: Annotated[
        list[str],
        typer.Option(metavar="NAME[:param=value,…]", help="See `laconic methods`; several run in order."),
    ],
    keep: Annotated[
        str | None, typer.Option(metavar="FRACTION", help="Of the targeted bytes; or attention=0.5,ffn=0.3.")
    ] = None,
    allocate: Annotated[
        str, typer.Option(metavar="uniform|spectrum|global", help="How the budget is shared.")
    ] = "uniform",
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="attention|ffn|head|embedding|blocks|all|cost-of-compression:…|GLOB",
            help="What to compress [attention,ffn]; blocks is all inside them, all the embedding and the head "
            "too; cost-of-compression:attention, :ffn and :all are the sets of The Cost of Compression.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Calibration texts: glue/sst2, a file, builtin:pydoc, ….")
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Rows of it that are used.")] = 128,
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 0,
    max_length: Annotated[int, typer.Option(metavar="N", help="Tokens of a row at most.", min=2)] = 128,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Rows that the model runs at once.", min=1)] = 16,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Block by block, each on what those before have made of its inputs.")
    ] = False,
    anchored: Annotated[
        bool,
        typer.Option("--anchored", help="The same, and each matrix aims at what the original gives: better, slower."),
    ] = False,
    allow_dense: Annotated[
        bool,
        typer.Option("--allow-dense", help="Also where over a tenth of the blocks can only stay dense, as experts do."),
    ] = False,
    label_order: LabelOrderOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Compress MODEL into the folder OUT."""
    device, aims, keeps = own_device(device), None if targets is None else split(targets), keep_from(keep)
    for one in method:
        check_name(one, "--method")
    if targets is not None and not aims:
        raise must_be("--targets", "groups or globs, like attention or ffn", ",".join(targets))
    silence_libraries()
    from laconic.cli.record import show_record
    from laconic.model import DEFAULT_TARGETS
    from laconic.recipe import recipe_from, run, write_recipe
    from laconic.recipe.flow import steps_of, walk_of
    from laconic.recipe.parse import method_or_step
    from laconic.recipe.write import spell_step

    lines = [method_or_step(one, "--method") for one in method]
    walk = walk_of(sequential=sequential, anchored=anchored)
    steps = steps_of(lines, keeps, allocate, aims or DEFAULT_TARGETS, walk, allow_dense=allow_dense)
    if data is None and any(step.needs_data for step in steps):
        raise UserError("--data is missing, and the method needs calibration texts; name a source, like builtin:pydoc.")
    # By way of the words that it prints, so that the recipe is what really runs.
    drawn = {"samples": samples, "seed": seed, "max_length": max_length, "batch_size": batch_size}
    spelled = {"model": model, **drawn, "steps": [spell_step(step) for step in steps]}
    given = {"data": data, "label_order": None if label_order is None else split([label_order])}
    recipe = recipe_from({**spelled, **{name: value for name, value in given.items() if value is not None}})
    with progress() as track:
        record = run(recipe, output, track=track, device=device)
    show_record(record, json, write_recipe(recipe))
