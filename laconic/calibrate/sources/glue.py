"""The nine GLUE tasks as data: their files, columns and labels (Wang et al. 2019, https://gluebenchmark.com)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from laconic.calibrate.classes import find_class
from laconic.calibrate.corpus import Example, Label, label_from, read_text
from laconic.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One GLUE task.

    Args:
        name: name of the task in `glue/NAME`.
        folder: its folder in GLUE's own distribution.
        texts: columns of the one or two texts in that distribution: names, or numbers if the files have no header
            (CoLA; its test file has one, with the names `hub_texts`).
        label: column of the label, likewise.
        classes: names of the classes in the order of their numbers on the hub; empty for a regression.
        hub: configuration of the hub data set; if empty, it is `name`.
        hub_texts: fields of the texts on the hub; if empty, they are `texts`.
        dev: name of the dev file in the distribution, without its ending.
        scale: divisor of the scores, so that they lie in [0, 1].
        drops_broken_rows: skip rows with too few columns instead of raising an error.
    """

    name: str
    folder: str
    texts: tuple[str | int, ...]
    label: str | int = "label"
    classes: tuple[str, ...]
    hub: str = ""
    hub_texts: tuple[str, ...] = ()
    dev: str = "dev"
    scale: float = 1.0
    drops_broken_rows: bool = False

    def label_from(self, value: Any) -> Label | None:
        """Convert a label as the files or the hub have it.

        Args:
            value: a class name, a class number or a score.

        Returns:
            The class number, or the score divided by `scale`; None for −1, which means that the label is hidden.
        """
        label = label_from(value)
        if label == HIDDEN:
            return None
        number = find_class(label, self.classes) if isinstance(label, str) else None
        if number is not None:
            return float(number)
        return label / self.scale if isinstance(label, float) else label


HIDDEN = -1.0
TEST_HEADER = "index\t"
"""Beginning of CoLA's test file; the other files of CoLA have no header."""
SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

MNLI = GlueTask(
    name="mnli",
    folder="MNLI",
    texts=SENTENCES,
    label="gold_label",
    classes=("entailment", "neutral", "contradiction"),
    hub_texts=("premise", "hypothesis"),
    dev="dev_matched",
)
TASKS: tuple[GlueTask, ...] = (
    GlueTask(
        name="cola",
        folder="CoLA",
        texts=(3,),
        label=1,
        classes=("unacceptable", "acceptable"),
        hub_texts=("sentence",),
    ),
    GlueTask(
        name="mrpc",
        folder="MRPC",
        texts=("#1 String", "#2 String"),
        label="Quality",
        classes=("not_equivalent", "equivalent"),
        hub_texts=SENTENCES,
    ),
    GlueTask(name="qnli", folder="QNLI", texts=("question", "sentence"), classes=ENTAILMENT),
    GlueTask(
        name="qqp",
        folder="QQP",
        texts=("question1", "question2"),
        label="is_duplicate",
        classes=("not_duplicate", "duplicate"),
        # Some rows of the distributed file are cut off in the middle; every GLUE reader leaves them out.
        drops_broken_rows=True,
    ),
    GlueTask(name="rte", folder="RTE", texts=SENTENCES, classes=ENTAILMENT),
    GlueTask(name="sst2", folder="SST-2", texts=("sentence",), classes=("negative", "positive")),
    GlueTask(name="stsb", folder="STS-B", texts=SENTENCES, label="score", classes=(), scale=5.0),
    # In WNLI class 1 is entailment; in RTE and QNLI it is class 0.
    GlueTask(name="wnli", folder="WNLI", texts=SENTENCES, classes=ENTAILMENT[::-1]),
    MNLI,
    replace(MNLI, name="mnli-mm", hub="mnli", dev="dev_mismatched"),
)


def find_glue_task(name: str) -> GlueTask | None:
    """Return the task with this name or folder, ignoring case (`sst2`, `SST-2`); None if there is none."""
    return next((task for task in TASKS if name.lower() in (task.name, task.folder.lower())), None)


def glue_task(name: str) -> GlueTask:
    """Return the task with this name or folder, ignoring case (`sst2`, `SST-2`).

    Raises:
        UserError: there is no such task; the message suggests the nearest name.
    """
    task = find_glue_task(name)
    if task is None:
        raise unknown("GLUE task", name, [task.name for task in TASKS])
    return task


def glue_file(folder: Path, task: GlueTask, split: str) -> Path | None:
    """Return the file of a split of a GLUE task.

    Args:
        folder: the folder that contains the folders of the GLUE tasks.
        task: the task.
        split: `train` or `dev`.

    Returns:
        The path, or None if there is no such file.
    """
    path = folder / task.folder / f"{task.dev if split == 'dev' else split}.tsv"
    return path if path.is_file() else None


def read_glue_file(path: Path, task: GlueTask) -> list[Example]:
    """Read one file of GLUE's own distribution: tab-separated, without quoting.

    Args:
        path: the file.
        task: its task.

    Returns:
        The rows; their labels are None if the file has no column for them.

    Raises:
        UserError: a column is missing, or a row is too short; the message has its line.
    """
    lines = read_text(path).split("\n")
    has_header = isinstance(task.label, str) or lines[0].startswith(TEST_HEADER)
    texts, label = _columns(path, task, lines[0].split("\t") if has_header else None)
    widest = max((*texts, label or 0))
    rows: list[Example] = []
    for at, line in enumerate(lines[has_header:], start=1 + has_header):
        cells = [cell.strip() for cell in line.split("\t")]
        if not line.strip() or (task.drops_broken_rows and len(cells) <= widest):
            continue
        if len(cells) <= widest:
            raise UserError(f"{path}:{at} has {len(cells)} columns, {task.folder} {widest + 1}; fix the row.")
        found = None if label is None else task.label_from(cells[label])
        rows.append(Example(*(cells[column] for column in texts), label=found, place=f"{path}:{at}"))
    return rows


def _columns(path: Path, task: GlueTask, header: list[str] | None) -> tuple[list[int], int | None]:
    """Column numbers of the texts and of the label; the latter is None if the file has no labels."""
    if header is None:
        return [column for column in task.texts if isinstance(column, int)], int(task.label)
    names = [name for name in task.texts if isinstance(name, str)] or task.hub_texts
    for name in names:
        if name not in header:
            raise UserError(f"{path} has no column '{name}', which GLUE's {task.folder} has; its header is {header}.")
    return [header.index(name) for name in names], header.index(task.label) if task.label in header else None
