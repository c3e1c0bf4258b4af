"""The names of the harness's tasks and the YAML file of each, read without importing the harness.

Its own index parses every file and takes seconds; a name needs one line of each.
"""

import re
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from laconic.errors import UserError, install

NEEDED = ("lm_eval", "accelerate")
"""Packages without which no task is run."""
GROUP = "group"
_NAME = re.compile(r"""^["']?(task|group)["']?:[ \t]*["']?([^\s"'#]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)


def find_task(name: str) -> Path:
    """The YAML file that defines the task `name`.

    Raises:
        UserError: the harness is not installed, has no such task (the nearest is suggested), or a group of that name.
    """
    known = _named(_folder())
    if name not in known:
        tasks = [task for task, (kind, _) in known.items() if kind != GROUP]
        close = get_close_matches(name, tasks, n=1)
        hint = f"did you mean 'harness/{close[0]}'? " if close else ""
        raise UserError(f"The harness has no task '{name}': {hint}`lm_eval ls subtasks` lists all {len(tasks)}.")
    kind, file = known[name]
    if kind == GROUP:
        raise UserError(f"'harness/{name}' is a group of the harness's tasks; name those of them that are wanted.")
    return file


def _folder() -> Path:
    """Where the installed harness keeps its tasks."""
    specs = {package: find_spec(package) for package in NEEDED}
    missing = [package for package, spec in specs.items() if spec is None]
    origin = None if missing else specs["lm_eval"] and specs["lm_eval"].origin
    if origin is None:
        raise UserError(
            f"The harness's tasks need {' and '.join(missing or NEEDED)}, not installed here: {install('harness')}."
        )
    return Path(origin).parent / "tasks"


@cache
def _named(folder: Path) -> dict[str, tuple[str, Path]]:
    """By its name, each task and group: which of the two it is, and its file. The first file of a name counts."""
    named: dict[str, tuple[str, Path]] = {}
    for file in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
        for kind, name in _NAME.findall(file.read_text(encoding="utf-8")):
            named.setdefault(name, (kind, file))
    return named
