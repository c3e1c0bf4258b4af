"""The nine GLUE tasks as data: their files, columns and labels (Wang et al. 2019, https://gluebenchmark.com)."""

from dataclasses import dataclass, replace
from pathlib import Path

from laconic.calibrate.examples import Example
from laconic.calibrate.sources.records import content, label_value
from laconic.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One task.

    folder:  its folder in GLUE's own distribution, and `dev` its file there without the ending.
    texts:   columns of one or two texts; `label` that of the label. Numbers where the file has no header.
    hub:     configuration of the hub data set, with the fields `hub_texts` and the dev split `hub_dev`.
    classes: names of the classes in the order of their numbers; empty for a regression.
    scale:   what labels are divided by, so that models see scores up to 1.
    """

    name: str
    folder: str
    texts: tuple[str | int, ...]
    label: str | int = "label"
    classes: tuple[str, ...] = ("0", "1")
    hub: str
    hub_texts: tuple[str, ...] = ("sentence1", "sentence2")
    dev: str = "dev"
    hub_dev: str = "validation"
    scale: float = 1.0
    drops_broken_rows: bool = False


SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
MNLI_CLASSES = ("entailment", "neutral", "contradiction")

MNLI = GlueTask(
    name="mnli",
    folder="MNLI",
    texts=SENTENCES,
    label="gold_label",
    classes=MNLI_CLASSES,
    hub="mnli",
    hub_texts=("premise", "hypothesis"),
    dev="dev_matched",
    hub_dev="validation_matched",
)
TASKS: tuple[GlueTask, ...] = (
    GlueTask(name="cola", folder="CoLA", texts=(3,), label=1, hub="cola", hub_texts=("sentence",)),
    GlueTask(name="mrpc", folder="MRPC", texts=("#1 String", "#2 String"), label="Quality", hub="mrpc"),
    GlueTask(
        name="qnli",
        folder="QNLI",
        texts=("question", "sentence"),
        classes=ENTAILMENT,
        hub="qnli",
        hub_texts=("question", "sentence"),
    ),
    GlueTask(
        name="qqp",
        folder="QQP",
        texts=("question1", "question2"),
        label="is_duplicate",
        hub="qqp",
        hub_texts=("question1", "question2"),
        # Some rows of the distributed file are cut off in the middle; every GLUE reader leaves them out.
        drops_broken_rows=True,
    ),
    GlueTask(name="rte", folder="RTE", texts=SENTENCES, classes=ENTAILMENT, hub="rte"),
    GlueTask(name="sst2", folder="SST-2", texts=("sentence",), hub="sst2", hub_texts=("sentence",)),
    GlueTask(name="stsb", folder="STS-B", texts=SENTENCES, label="score", classes=(), scale=5.0, hub="stsb"),
    GlueTask(name="wnli", folder="WNLI", texts=SENTENCES, hub="wnli"),
    MNLI,
    replace(MNLI, name="mnli-mm", dev="dev_mismatched", hub_dev="validation_mismatched"),
)


def glue_task_of(name: str) -> GlueTask | None:
    """The task of this name or folder, in any case (`sst2`, `SST-2`); None when there is none."""
    return next((task for task in TASKS if name.lower() in (task.name, task.folder.lower())), None)


def glue_task(name: str) -> GlueTask:
    """As `glue_task_of`.

    Raises:
        UserError: no such task; the nearest is suggested.
    """
    task = glue_task_of(name)
    if task is None:
        raise unknown("GLUE task", name, [task.name for task in TASKS])
    return task


def glue_file(folder: Path, task: GlueTask, split: str) -> Path | None:
    """The file of `split` in a folder that holds GLUE's folders; None when it is not there."""
    path = folder / task.folder / f"{task.dev if split == 'dev' else split}.tsv"
    return path if path.is_file() else None


def read_glue_file(path: Path, task: GlueTask) -> list[Example]:
    """The rows of one file of GLUE's own distribution, which never quotes.

    Raises:
        UserError: a missing column, a row that is too short, a label that is none; with the line.
    """
    lines = content(path).split("\n")
    has_header = isinstance(task.label, str)
    columns = _columns(path, task, lines[0].split("\t") if has_header else [])
    rows: list[Example] = []
    for at, line in enumerate(lines[has_header:], start=1 + has_header):
        cells = line.split("\t")
        if not line.strip() or (task.drops_broken_rows and len(cells) <= max(columns)):
            continue
        if len(cells) <= max(columns):
            raise UserError(f"{path}:{at} has {len(cells)} columns, {task.folder} {max(columns) + 1}; mend the row.")
        *texts, label = (cells[column].strip() for column in columns)
        rows.append(Example(*texts, label=label_value(label, f"{path}:{at}", task.scale)))
    return rows


def _columns(path: Path, task: GlueTask, header: list[str]) -> list[int]:
    """Where the texts and the label are."""
    columns: list[int] = []
    for name in (*task.texts, task.label):
        if isinstance(name, str) and name not in header:
            raise UserError(f"{path} has no column '{name}', which GLUE's {task.folder} has; its header is {header}.")
        columns.append(header.index(name) if isinstance(name, str) else name)
    return columns
