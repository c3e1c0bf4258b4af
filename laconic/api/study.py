"""`laconic.study`: run a grid of recipes over models, tasks and seeds, and write its report."""

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike, fsdecode
from pathlib import Path
from typing import Any, Literal, overload

from laconic.api.arguments import check_kinds
from laconic.api.inputs import Document, local_device, local_folder, read_document
from laconic.api.studied import StudyPlan, StudyResult
from laconic.errors import Notice, UserError, must_be
from laconic.progress import Track, silent
from laconic.report.study import write_report
from laconic.store import check_output
from laconic.study import (
    FAILED,
    Cell,
    Executor,
    Ledger,
    MlflowLogger,
    Record,
    Study,
    cells_of,
    check_cells,
    check_logging,
    estimate_seconds,
    of_the_study,
    parse_study,
    run_study,
    save_study,
    title_of,
)
from laconic.study.executors import InProcess, Processes

EXECUTORS = ("local", "ray")


@overload
def study(
    study: str | PathLike[str] | Mapping[str, Any] | Document,
    output: str | PathLike[str],
    *,
    executor: str = "local",
    workers: int = 1,
    address: str | None = None,
    retry_failed: bool = False,
    dry_run: Literal[False] = False,
    device: str = "cpu",
    track: Track = silent,
    **changes: Any,
) -> StudyResult: ...
@overload
def study(
    study: str | PathLike[str] | Mapping[str, Any] | Document,
    output: str | PathLike[str],
    *,
    executor: str = "local",
    workers: int = 1,
    address: str | None = None,
    retry_failed: bool = False,
    dry_run: Literal[True],
    device: str = "cpu",
    track: Track = silent,
    **changes: Any,
) -> StudyPlan: ...
def study(
    study: str | PathLike[str] | Mapping[str, Any] | Document,
    output: str | PathLike[str],
    *,
    executor: str = "local",
    workers: int = 1,
    address: str | None = None,
    retry_failed: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    track: Track = silent,
    **changes: Any,
) -> StudyResult | StudyPlan:
    """Run every cell of a study that is not done yet, and write its report.

    Args:
        study: a YAML file, the name of a study that comes with laconic (`laconic study --list`), or a mapping as YAML
            would give it.
        output: folder or URL of the study; records that lie there already are kept and not measured again.
        executor: what runs the cells, `local` or `ray`.
        workers: number of cells that run side by side; they share the cores.
        address: address of the Ray cluster; a local one is started if None.
        retry_failed: also run cells that failed before.
        dry_run: only list the cells, and about how long they take.
        device: where to compute: `cpu`, `cuda` or `cuda:1`.
        track: reports progress.
        changes: values that replace those of the study, by their place: `limit=100`, `**{"axes.keep": [0.5]}`.

    Returns:
        The records of all cells; of a dry run the list of cells.

    Raises:
        UserError: the study cannot be read, or a cell cannot be done; what can be checked is checked before anything
            is measured. A cell that fails later is among the records.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> BertModel(BertConfig(vocab_size=50, **shape)).save_pretrained("model")
        >>> axes = {"model": ["model"], "method": ["svd"], "keep": [0.5, 0.3]}
        >>> study({"axes": axes, "cost": True}, "studies/sizes", dry_run=True).to_frame()["keep"].tolist()
        [nan, 0.5, 0.3]
    """
    check_kinds(executor=executor, workers=workers, address=address, retry_failed=retry_failed, dry_run=dry_run)
    check_kinds(track=track)
    if executor not in EXECUTORS:
        raise must_be("executor", f"one of {', '.join(EXECUTORS)}", executor)
    if workers < 1:
        raise must_be("workers", "at least 1", workers)
    place = fsdecode(output)
    folder = local_folder("output", place)
    own = local_device(device)
    if address is not None and executor != "ray":
        raise UserError("address is for the executor ray; leave it out.")
    document = read_document(study, "study", changes)
    parsed = parse_study(document.text, document.path, document.overrides)
    cells = cells_of(parsed)
    if (parsed.save or parsed.prepare) and folder is None:
        raise must_be("output", "a folder of this machine, because the study keeps models", place)
    if folder is not None and not dry_run:
        check_output(folder, *{cell.recipe.model for cell in cells}, exist_ok=True)
    check_logging(parsed.mlflow, place)
    check_cells(cells)
    if dry_run:
        return StudyPlan(_planned(cells, place, retry_failed))
    ledger = Ledger(place)
    save_study(place, parsed.title, document.text, cells, document.overrides)
    runs = _executor(executor, folder, workers, address, own, track)
    logger = _mlflow_logger(parsed, place)
    summary = run_study(cells, ledger, runs, retry=retry_failed, logger=logger, track=track)
    if logger is not None and logger.missed:
        _notify(f"MLflow lacks {logger.missed} cells, which the next run of the study logs: {logger.reason}.")
    records = own_records(place)
    page = None if folder is None else write_report(records, folder, title_of(place)).page
    return StudyResult(place, records, summary.failed, page, summary)


def own_records(place: str) -> list[Record]:
    """The records of the study in `place`; a notice tells what else lies there."""
    records, invalid = Ledger(place).all()
    for file in invalid:
        _notify(f"'{file.name}' in {place} was left alone: {file.reason}.")
    own = of_the_study(place, records)
    if others := len(records) - len(own):
        _notify(
            f"Records in {place} that are not reported: {others}, of cells that the study has no more; "
            "run it with all that belongs together to have that in one report."
        )
    return own


def _notify(sentence: str) -> None:
    warnings.warn(sentence, Notice, stacklevel=3)


def _mlflow_logger(study: Study, place: str) -> MlflowLogger | None:
    uri = study.mlflow if isinstance(study.mlflow, str) else None
    return MlflowLogger(place, uri, study.title) if study.mlflow else None


def _executor(kind: str, place: Path | None, workers: int, address: str | None, device: str, track: Track) -> Executor:
    if kind == "ray":
        from laconic.study.ray_executor import RayExecutor, connect

        connect(address)
        # Ray hides the GPUs from workers that have not asked for one.
        return RayExecutor(place, workers, address, gpus=float(device.startswith("cuda")), device=device)
    return InProcess(place, device, track) if workers == 1 else Processes(place, workers, device)


def _planned(cells: Sequence[Cell], place: str, retry: bool) -> list[dict[str, Any]]:
    """Each cell with its state and about how many seconds it takes."""
    records: list[Record] = Ledger(place).all()[0] if Ledger.is_at(place) else []
    states = {record["key"]: record["state"] for record in records if not (retry and record["state"] == FAILED)}
    seconds = estimate_seconds([cell for cell in cells if cell.key not in states], records)
    return [
        {
            "key": cell.key,
            "axes": dict(cell.axes),
            "state": states.get(cell.key, "to do"),
            "seconds": None if cell.key not in seconds else round(seconds[cell.key], 1),
        }
        for cell in cells
    ]
