"""Find tasks of the harness and their local data sets without importing the harness.

The index of the harness parses all YAML files, which takes seconds. The names need only one line of each file.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from laconic.calibrate.corpus import read_text
from laconic.calibrate.sources import data_folder
from laconic.errors import UserError, install, must_be
from laconic.evaluate.eval_task import JsonObject, read_objects

REQUIRED_PACKAGES = ("lm_eval", "accelerate")
"""Packages that are required for each task."""
GROUP = "group"
_NAME = re.compile(r"""^["']?(task|group)["']?:[ \t]*["']?([^\s"'#]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)


def find_task_file(name: str) -> Path:
    """The YAML file that defines the task `name`.

    Raises:
        UserError: the harness is not installed, has no such task (the message suggests a similar name), or the name is
            that of a group.
    """
    index = _index_tasks(_tasks_folder())
    if name not in index:
        tasks = [task for task, (kind, _) in index.items() if kind != GROUP]
        close = get_close_matches(name, tasks, n=1)
        hint = f"did you mean 'harness/{close[0]}'? " if close else ""
        raise UserError(f"The harness has no task '{name}': {hint}`lm_eval ls subtasks` lists all {len(tasks)}.")
    kind, file = index[name]
    if kind == GROUP:
        raise UserError(f"'harness/{name}' is a group of the harness's tasks; name single tasks of it.")
    return file


def _tasks_folder() -> Path:
    """The folder of tasks in the installed harness."""
    specs = {package: find_spec(package) for package in REQUIRED_PACKAGES}
    missing = [package for package, spec in specs.items() if spec is None]
    origin = None if missing else specs["lm_eval"] and specs["lm_eval"].origin
    if origin is None:
        packages = " and ".join(missing or REQUIRED_PACKAGES)
        raise UserError(f"The harness's tasks need {packages}, not installed here: {install('harness')}.")
    return Path(origin).parent / "tasks"


@cache
def _index_tasks(folder: Path) -> dict[str, tuple[str, Path]]:
    """For each name, whether it is a task or a group, and its file (the first one, if there are several)."""
    named: dict[str, tuple[str, Path]] = {}
    for file in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
        for kind, name in _NAME.findall(file.read_text(encoding="utf-8")):
            named.setdefault(name, (kind, file))
    return named


Rows = list[dict[str, Any]]
SPLIT = "validation"
"""The split that local files contain, by its name on the hub."""


@dataclass(frozen=True)
class LocalData:
    """Local files that replace a data set of the hub.

    Args:
        folder: the folder in `$LACONIC_DATA`.
        files: the names of the files in this folder; all are required.
        read: reads the rows from the folder, with the columns of the data set on the hub.
    """

    folder: str
    files: tuple[str, ...]
    read: Callable[[Path], Rows]

    @property
    def source(self) -> str:
        """The name of the data set in results."""
        return f"{self.folder}/{self.files[0]}"

    def rows(self) -> Rows:
        """Read all rows.

        Raises:
            UserError: a row is malformed; the message has its file and line.
        """
        folder = data_folder()
        assert folder is not None, "a data set is local only where LACONIC_DATA is set"
        rows = self.read(folder / self.folder)
        if not rows:
            raise UserError(f"The file '{folder / self.source}' has no rows; give one that has some.")
        return rows


def find_local_data(dataset: str, configuration: str | None) -> LocalData | None:
    """The local files for a data set of the hub; None if `$LACONIC_DATA` does not contain them."""
    folder, data = data_folder(), LOCAL_DATA.get((dataset, configuration))
    if folder is None or data is None:
        return None
    return data if all((folder / data.folder / file).is_file() for file in data.files) else None


def local_files(dataset: str, configuration: str | None) -> str:
    """The names of the local files that can replace a data set of the hub; "" if there is no reader for it."""
    data = LOCAL_DATA.get((dataset, configuration))
    return "" if data is None else " and ".join(f"LACONIC_DATA/{data.folder}/{file}" for file in data.files)


def _read_boolq(folder: Path) -> Rows:
    rows: Rows = []
    for index, (place, row) in enumerate(read_objects(folder / "dev.jsonl")):
        passage, question = _text(row, "passage", place), _text(row, "question", place)
        # The harness reads the version in SuperGLUE, where the title precedes the passage.
        if "label" not in row:
            passage = f"{_text(row, 'title', place)} -- {passage}"
        answer = row.get("label", row.get("answer"))
        if answer not in (True, False):
            raise must_be(f"The answer of {place}", "true or false", answer)
        rows.append({"question": question, "passage": passage, "idx": index, "label": int(answer)})
    return rows


def _read_piqa(folder: Path) -> Rows:
    rows: Rows = [
        {name: _text(row, name, place) for name in ("goal", "sol1", "sol2")}
        for place, row in read_objects(folder / "dev.jsonl")
    ]
    labels = read_text(folder / "dev-labels.lst").split()
    if len(labels) != len(rows):
        raise UserError(
            f"{folder / 'dev-labels.lst'} has {len(labels)} labels, and dev.jsonl {len(rows)} rows; correct the files."
        )
    for number, (row, label) in enumerate(zip(rows, labels, strict=True), start=1):
        if label not in ("0", "1"):
            raise must_be(f"The label {folder / 'dev-labels.lst'}:{number}", "0 or 1", label)
        row["label"] = int(label)
    return rows


def _read_winogrande(folder: Path) -> Rows:
    rows: Rows = []
    for place, row in read_objects(folder / "dev.jsonl"):
        fields = {name: _text(row, name, place) for name in ("sentence", "option1", "option2", "answer")}
        if "_" not in fields["sentence"]:
            raise must_be(f"The sentence of {place}", "one with a gap _", fields["sentence"])
        if fields["answer"] not in ("1", "2"):
            raise must_be(f"The answer of {place}", "1 or 2", fields["answer"])
        rows.append(fields)
    return rows


LOCAL_DATA: dict[tuple[str, str | None], LocalData] = {
    ("aps/super_glue", "boolq"): LocalData("boolq", ("dev.jsonl",), _read_boolq),
    ("baber/piqa", None): LocalData("piqa", ("dev.jsonl", "dev-labels.lst"), _read_piqa),
    ("allenai/winogrande", "winogrande_xl"): LocalData("winogrande", ("dev.jsonl",), _read_winogrande),
}
"""The local files by the name and the configuration of the data set on the hub."""


def _text(row: JsonObject, field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise must_be(f"The field '{field}' of {place}", "text", value)
    return value
