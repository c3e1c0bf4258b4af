"""`laconic compress`: one or several methods on one model."""

from typing import Annotated

import typer

from laconic.api.inputs import check_device
from laconic.catalogue import check_name
from laconic.cli.options import (
    DeviceOption,
    JsonOption,
    LabelOrderOption,
    ModelArgument,
    OutputOption,
    keep_from,
    names_from,
)
from laconic.cli.terminal import progress_bars, show_result, silence_libraries
from laconic.errors import must_be


def compress(
    model: ModelArgument,
    output: OutputOption,
    method: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[:param=value,…]",
            help="A method or step of `laconic methods`. If the option is given several times, they run in order.",
        ),
    ],
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTION",
            help="Fraction of the targeted bytes to keep, in (0, 1], or one for each group, as attention=0.5,ffn=0.3. "
            "Methods need it unless they have a size of their own.",
        ),
    ] = None,
    allocate: Annotated[
        str,
        typer.Option(
            metavar="uniform|spectrum|global",
            help="How the budget is shared between matrices: the same fraction for each; more bytes where they lower "
            "the predicted loss most; or one threshold for all scores of a pruning method.",
        ),
    ] = "uniform",
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="attention|ffn|head|embedding|blocks|all|cost-of-compression:…|GLOB|re:REGEX",
            help="Which matrices to compress. blocks is everything inside the blocks, all adds the embedding and the "
            "head. A GLOB or a regular expression after re: matches the paths of layers. "
            "cost-of-compression:attention, :ffn and :all are the sets in the paper 'The Cost of Compression' "
            "(arXiv 2312.00960). The default is attention,ffn.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Calibration texts, such as glue/sst2, a file, or builtin:pydoc."),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Number of rows of the data to use.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")] = 0,
    max_length: Annotated[int, typer.Option(metavar="N", help="Longest row in tokens; the rest is cut.", min=2)] = 128,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Rows that the model runs at once.", min=1)] = 16,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential", help="Solve block by block, each on inputs with the errors of the compressed blocks before."
        ),
    ] = False,
    anchored: Annotated[
        bool,
        typer.Option(
            "--anchored",
            help="Solve layer by layer, and aim at the outputs of the original model. Closer than --sequential, and "
            "slower.",
        ),
    ] = False,
    allow_dense: Annotated[
        bool,
        typer.Option(
            "--allow-dense",
            help="Continue if over a tenth of the targeted parameters can only stay dense, as experts do.",
        ),
    ] = False,
    label_order: LabelOrderOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Compress MODEL into the folder OUT, and print the recipe that does the same."""
    check_device(device)
    fraction, order = keep_from(keep), None if label_order is None else names_from([label_order])
    for name in method:
        check_name(name, "--method")
    names = None if targets is None else names_from(targets)
    if names == ():
        raise must_be("--targets", "groups or globs, like attention or ffn", ",".join(targets or ()))
    silence_libraries()
    from laconic.api.compress import compress as compress_model
    from laconic.model import DEFAULT_TARGETS

    with progress_bars() as track:
        result = compress_model(
            model, method, fraction, data=data, allocate=allocate, targets=names or DEFAULT_TARGETS, samples=samples,
            seed=seed, max_length=max_length, batch_size=batch_size, sequential=sequential, anchored=anchored,
            allow_dense=allow_dense, label_order=order, output=output, device=device, track=track,
        )  # fmt: skip
    show_result(result, json, result.recipe)
