"""`laconic study`: a grid of recipes over models, tasks and seeds, which continues where it was stopped."""

from typing import Annotated, Literal

import typer

from laconic.api.inputs import check_device, local_folder, read_document
from laconic.cli.options import DeviceOption, JsonOption, ListOfStudies
from laconic.cli.terminal import progress_bars, show_result, silence_libraries
from laconic.errors import UserError


def study(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, or a name from --list, such as quick.")],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder or URL of the study; cells that lie there are kept."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="Values of the study to replace, as limit=100 or axes.keep=[0.5]."),
    ] = None,
    executor: Annotated[Literal["local", "ray"], typer.Option(help="What runs the cells.")] = "local",
    workers: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of cells that run side by side; they share the cores.")
    ] = 1,
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster; without it a local one is started.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also run cells that failed before.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the cells, and about how long they take.")
    ] = False,
    device: DeviceOption = "cpu",
    list_names: ListOfStudies = False,
    json: JsonOption = False,
) -> None:
    """Run every cell of a study that is not done yet, and write the report."""
    local_folder("--output", output)
    check_device(device)
    if address is not None and executor != "ray":
        raise UserError("--address is for --executor ray; leave it out.")
    # Read once, and before seconds are spent on imports: what another program pipes in is there once.
    document = read_document(study, "study", overrides=overrides or ())
    silence_libraries()
    from laconic.api.studied import StudyResult
    from laconic.api.study import study as run_study

    with progress_bars() as track:
        result = run_study(
            document, output, executor=executor, workers=workers, address=address, retry_failed=retry_failed,
            dry_run=dry_run, device=device, track=track,
        )  # fmt: skip
    show_result(result, json)
    if isinstance(result, StudyResult) and result.failed:
        # A script that waits for a study has to know, and it was no mistake of the command's.
        raise typer.Exit(1)
