"""`laconic compress` applies methods to a model; `laconic run` runs a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from laconic.api.inputs import check_device, read_document
from laconic.catalogue import check_name
from laconic.cli.options import (
    DeviceOption,
    DryRunOption,
    JsonOption,
    LabelOrderOption,
    ListOfRecipes,
    ModelArgument,
    OutputOption,
    keep_from,
    names_from,
)
from laconic.cli.terminal import let_waiting_threads_sleep, progress_bars, show_result, silence_libraries
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
            "Experts count as ffn, or have a fraction of their own, as experts=0.2. Methods need it unless they have a "
            "size of their own.",
        ),
    ] = None,
    allocate: Annotated[
        str,
        typer.Option(
            metavar="uniform|spectrum|global|Q4_K_M|…",
            help="How the budget is distributed over the matrices. uniform: the same fraction for each. spectrum: "
            "more bytes for matrices whose compression is predicted to cost most. global: one threshold for the "
            "scores of all matrices, for pruning methods. Q4_K_M, Q3_K_M, Q2_K and other file types of llama.cpp: the "
            "blocks that they have for each matrix, for rtn, gptq and yaqa.",
        ),
    ] = "uniform",
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="attention|ffn|experts|head|embedding|blocks|all|cost-of-compression:…|GLOB|re:REGEX",
            help="Which matrices to compress. experts: those of mixtures, which ffn includes. blocks: all matrices "
            "inside the blocks. all: these, the embedding and the head. A GLOB or a regular expression after re: "
            "matches the paths of layers. cost-of-compression:attention, :ffn and :all are the sets in the paper "
            "'The Cost of Compression' (arXiv 2312.00960). The default is attention,ffn.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Source of calibration texts, such as glue/sst2, a file, or builtin:pydoc."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Number of calibration rows, drawn at random.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed for all random numbers.")] = 0,
    max_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Maximum tokens of a row; longer rows are truncated. 512 by default for a causal language model, 128 "
            "for others.",
            min=2,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Rows in a batch.", min=1)] = 16,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential",
            help="Compress block by block, each on the outputs of the compressed blocks before it.",
        ),
    ] = False,
    anchored: Annotated[
        bool,
        typer.Option(
            "--anchored",
            help="Compress layer by layer, and fit each to the outputs of the original model. Closer to the original "
            "than --sequential, and slower.",
        ),
    ] = False,
    allow_dense: Annotated[
        bool,
        typer.Option(
            "--allow-dense",
            help="Continue if more than a tenth of the targeted parameters cannot be compressed.",
        ),
    ] = False,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Load one block at a time, for a model that is larger than memory. The default is to do so if the "
            "model needs more memory than is free; --no-stream never does.",
            show_default=False,
        ),
    ] = None,
    label_order: LabelOrderOption = None,
    device: DeviceOption = "cpu",
    dry_run: DryRunOption = False,
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
    let_waiting_threads_sleep()
    silence_libraries()
    from laconic.api.compress import compress as compress_model
    from laconic.api.compressed import CompressResult
    from laconic.model import DEFAULT_TARGETS

    with progress_bars() as track:
        result = compress_model(
            model, method, fraction, dry_run=dry_run, data=data, allocate=allocate, targets=names or DEFAULT_TARGETS,
            samples=samples, seed=seed, max_length=max_length, batch_size=batch_size, sequential=sequential,
            anchored=anchored, allow_dense=allow_dense, stream=stream, label_order=order, output=output, device=device,
            track=track,
        )  # fmt: skip
    if isinstance(result, CompressResult):
        show_result(result, json, result.recipe)
    else:
        show_result(result, json)


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name from --list, such as sst2-kfac-svd.")
    ],
    output: OutputOption,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]…", help="Replace values of the recipe, such as 'steps[0].compress.keep=0.3'."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="PLAN.yaml",
            help="Plan with the method of each matrix; replaces the budget of the recipe's compress step.",
        ),
    ] = None,
    device: DeviceOption = "cpu",
    dry_run: DryRunOption = False,
    list_names: ListOfRecipes = False,
    json: JsonOption = False,
) -> None:
    """Run a recipe, and write the model to the folder OUT."""
    check_device(device)
    # A file that cannot be read is reported before seconds are spent on imports.
    document = read_document(recipe, "recipe", overrides=overrides or ())
    silence_libraries()
    from laconic.api.compress import run as run_recipe

    with progress_bars() as track:
        result = run_recipe(document, output, plan=plan, device=device, dry_run=dry_run, track=track)
    show_result(result, json)
