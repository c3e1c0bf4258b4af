"""A choice that a step makes from data, kept in the scratch folder of a streamed model, so that it is made once.

A run that was killed after the choice does not measure again. Of several processes, the first one reads and writes it,
and its choice is that of all.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laconic.files import store_json
from laconic.model import LanguageModel
from laconic.processes import on_rank_zero

CHOICE = "choice.json"


def read_choice(lm: LanguageModel) -> Any | None:
    """The choice that an earlier run of the same step kept, as JSON values.

    Args:
        lm: the model.

    Returns:
        None if there is none, if the disk has damaged it, or for a model in memory.
    """
    return None if lm.loans is None else on_rank_zero(_read)(lm.loans.scratch / CHOICE)


def keep_choice(lm: LanguageModel, choice: Any) -> Any:
    """Keep a choice for a later run of the same step; for a model in memory, nothing is written.

    Args:
        lm: the model.
        choice: the choice, as JSON values.

    Returns:
        The choice, as it is read back from JSON.

    Raises:
        UserError: the choice cannot be written.
    """
    return choice if lm.loans is None else on_rank_zero(_write)(lm.loans.scratch / CHOICE, choice)


def _read(file: Path) -> Any | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(file: Path, choice: Any) -> Any:
    store_json(file, choice)
    return json.loads(json.dumps(choice))


def choose_once(lm: LanguageModel, choose: Callable[[], Any]) -> Any:
    """Return the choice that an earlier run of the same step kept, or make it and keep it.

    Args:
        lm: the model; for a model in memory, nothing is read or written.
        choose: makes the choice, as JSON values.

    Returns:
        The choice, as it is read back from JSON.

    Raises:
        UserError: the choice cannot be written, or as `choose`.
    """
    found = read_choice(lm)
    return keep_choice(lm, choose()) if found is None else found
