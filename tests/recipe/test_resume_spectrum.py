"""A streamed plan by measured losses that was stopped at any place goes on there, with the same result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laconic.calibrate.shared_runs import SharedRuns
from laconic.compress import matrices, solve_and_replace
from laconic.compress.allocators import spectrum, streamed_copies
from laconic.compress.kl_metric import KLMetric
from laconic.recipe import recipe_from, run
from tests.recipe.test_stream import spelled
from tests.stopped import StopError, assert_equal_runs, stop_at

STEP = {"compress": {"method": "kfac-svd:multiple=1", "keep": 0.6, "allocate": "spectrum"}}
PLACES: list[tuple[Any, str, int]] = [
    (streamed_copies, "replace_group", 9),
    (SharedRuns, "_run_block", 1),
    (KLMetric, "each", 1),
    (solve_and_replace, "replace_group", 9),
    (SharedRuns, "_run_block", 1),
    (Path, "replace", 2),
]
"""Functions that the run calls while it applies the first plan, measures the copy, applies the second plan, and takes
over the parts of a copy; with the number of the call, from 0, at which it is stopped."""


def counted(function: Callable[..., Any], seen: list[None]) -> Callable[..., Any]:
    def count(*arguments: Any, **options: Any) -> Any:
        seen.append(None)
        return function(*arguments, **options)

    return count


@pytest.mark.filterwarnings("ignore:The finished parts are kept")
def test_it_goes_on_wherever_it_was_stopped(
    tiny_model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from(spelled(tiny_model, texts, STEP, stream=True))
    expected = run(recipe, tmp_path / "whole").to_json()
    for owner, name, call in PLACES:
        with monkeypatch.context() as patch, pytest.raises(StopError):
            patch.setattr(owner, name, stop_at(call, getattr(owner, name)))
            run(recipe, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    found = run(recipe, tmp_path / "out").to_json()
    assert_equal_runs(tmp_path, expected, found)


@pytest.mark.filterwarnings("ignore:The finished parts are kept")
def test_what_was_finished_is_not_done_again(
    tiny_model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from(spelled(tiny_model, texts, STEP, stream=True))
    # Nothing is left to do but to take the copy over.
    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(matrices, "take_over_copy", stop_at(0, streamed_copies.take_over_copy))
        run(recipe, tmp_path / "out")
    seen: list[None] = []
    with monkeypatch.context() as patch:
        for owner, name, _ in (*PLACES[:-1], (spectrum, "find_candidates", 0)):
            patch.setattr(owner, name, counted(getattr(owner, name), seen))
        run(recipe, tmp_path / "out")
    assert not seen
