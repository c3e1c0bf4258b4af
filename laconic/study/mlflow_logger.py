"""Cells as runs in MLflow, for those who look at all their experiments there. What counts stays the ledger.

Each record is logged once: a run is told by the key of its cell, its state and when it was finished, and one that a
killed runner left half is made anew. A server that is away ends no study; the next run of it logs what is missing.
"""

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from laconic.errors import UserError, install, must_be, reason_of
from laconic.paths import expanded
from laconic.report.study.groups import cell_name
from laconic.report.study.results import results_table
from laconic.study.folder import Folder
from laconic.study.ledger import DONE, Record

STORE, ARTIFACTS = "mlflow.db", "mlflow"
"""In the folder of a study."""
RECORD = "record.json"
PREFIX = "laconic."
TOLD_BY = ("key", "state", "finished")
"""By which of its tags a run is known to be of a record."""
NEEDED, NEEDED_BY_SQL = ("mlflow",), ("sqlalchemy", "alembic")
SQL = re.compile(r"(sqlite|postgresql|mysql|mssql)\b")
ALLOWED = re.compile(r"[^\w\-. :/]")
LONGEST = 250
"""Characters of a name."""
SETTINGS = ("data", "samples", "max_length", "batch_size", "labels")
"""Of a recipe, those that are parameters of a run beside the axes."""


def check_logging(where: bool | str, place: str) -> None:
    """Raise UserError where the cells of a study in `place` cannot be logged `where` it says; no store is opened."""
    if where is False:
        return
    if where is True and "://" in place:
        raise must_be("study.mlflow", "a tracking URI, where the study itself is at a URL", where)
    if isinstance(where, str) and "://" not in where and not where.startswith("databricks"):
        raise must_be("study.mlflow", "true, or a tracking URI like http://localhost:5000", where)
    needed = NEEDED + (NEEDED_BY_SQL if where is True or SQL.match(str(where)) else ())
    if missing := [library for library in needed if find_spec(library) is None]:
        raise UserError(f"study.mlflow needs {' and '.join(missing)}, not installed here: {install('mlflow')}.")


class MlflowLogger:
    """The runs of the study in `place`, in the store at `uri` or, without one, in a SQLite file beside its records.

    missed: cells that could not be logged, and `reason` why.

    Raises:
        UserError: there is no such store, or its experiment was deleted.
    """

    def __init__(self, place: str, uri: str | None, title: str | None) -> None:
        self.missed = 0
        self.reason = ""
        self._folder = Folder(place)
        mlflow = import_module("mlflow")
        self._entities = import_module("mlflow.entities")
        self._errors: tuple[type[Exception], ...] = (import_module("mlflow.exceptions").MlflowException, OSError)
        here = expanded(place).absolute()
        # A server knows where artifacts go; beside a database MLflow would put them where the program was started.
        at = f"{place.rstrip('/')}/{ARTIFACTS}" if "://" in place else (here / ARTIFACTS).as_uri()
        artifacts = at if uri is None or SQL.match(uri) else None
        name = title or posixpath.basename(place.rstrip("/")) or here.name
        try:
            with self._folder.alone():
                self._client = mlflow.MlflowClient(uri or f"sqlite:///{here / STORE}")
                found = self._client.get_experiment_by_name(name)
                made = "" if found else self._client.create_experiment(name, artifact_location=artifacts)
        except self._errors as error:
            raise UserError(f"study.mlflow: The store '{uri or STORE}' cannot be used: {reason_of(error)}.") from error
        if found and found.lifecycle_stage == "deleted":
            raise UserError(f"study.mlflow: The experiment '{name}' was deleted; restore it, or give another title.")
        self._experiment = found.experiment_id if found else made

    def add(self, record: Record) -> None:
        """Log a record as a run, unless it has one; after a failure no other is tried."""
        if self.reason:
            self.missed += 1
            return
        try:
            with self._folder.alone():
                if not self._has(record):
                    self._log(record)
        except self._errors as error:
            self.missed += 1
            self.reason = reason_of(error)

    def _has(self, record: Record) -> bool:
        """Whether there is a whole run of it; half of one is removed."""
        same = (f"tags.`{PREFIX}{name}` = '{record[name]}'" for name in TOLD_BY)
        for run in self._client.search_runs([self._experiment], " and ".join(same)):
            if run.info.status != "RUNNING":
                return True
            self._client.delete_run(run.info.run_id)
        return False

    def _log(self, record: Record) -> None:
        end = int(datetime.fromisoformat(record["finished"]).timestamp() * 1e3)
        start = end - int(1e3 * (record.get("seconds") or {}).get("total", 0))
        run = self._client.create_run(self._experiment, start, _tags(record), cell_name(record["axes"])).info.run_id
        metrics = [self._entities.Metric(name, value, end, 0) for name, value in _metrics(record).items()]
        params = [self._entities.Param(name, value) for name, value in _params(record).items()]
        self._client.log_batch(run, metrics, params)
        self._client.log_text(run, json.dumps(record, indent=1), RECORD)
        self._client.set_terminated(run, "FINISHED" if record["state"] == DONE else "FAILED", end)


def _tags(record: Record) -> dict[str, str]:
    error = record.get("error") or {}
    axes = {name: record["axes"].get(name) for name in ("model", "method", "recipe", "task")}
    said = {**{name: record.get(name) for name in ("key", "finished", "state", "family", "baseline")}, **axes}
    return {f"{PREFIX}{name}": str(value) for name, value in (said | {"error": error.get("sentence")}).items()
            if value is not None}  # fmt: skip


def _params(record: Record) -> dict[str, str]:
    recipe = record.get("recipe") or {}
    said = {**{name: recipe.get(name) for name in SETTINGS}, **record["axes"]}
    return {_allowed(name): str(value) for name, value in said.items() if value is not None}


def _metrics(record: Record) -> dict[str, float]:
    """The numbers that it has in results.csv."""
    return {_allowed(name): value for name, value in _numbers(record)}


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    results = results_table([record])
    for name, value in results.rows[0].items():
        if name not in results.axes.values() and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value


def _allowed(name: str) -> str:
    """A name that MLflow takes; some stores make paths of them."""
    return posixpath.normpath(ALLOWED.sub("_", name))[:LONGEST]
