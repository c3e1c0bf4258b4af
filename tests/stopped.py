"""Stop a run at a certain call, as if it had been killed, and compare its result with that of a run without a stop."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from laconic.model import load


class StopError(Exception):
    """Stands for a run that was killed."""


def stop_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which stops the run at its call of this number, from 0."""
    calls = iter(range(call))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise StopError
        return function(*arguments, **options)

    return counted


def assert_equal_runs(folder: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """The results of two runs and their tensors are equal, and no file with a hidden name is left.

    Args:
        folder: the folder of both outputs, `whole` and `out`.
        expected: the JSON of the run without a stop.
        found: the JSON of the resumed run.
    """
    for key in ("bytes", "dense_bytes", "sites", "found", "predicted_losses"):
        assert found[key] == expected[key]
    mine, other = (load(str(folder / name)).model.state_dict() for name in ("whole", "out"))
    assert mine.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
