"""The copies on which a streamed plan is measured count in the estimate of scratch files and seconds."""

from pathlib import Path
from typing import Any

import pytest

from laconic.calibrate.spill import HiddenStates
from laconic.recipe import recipe_from, run
from laconic.recipe.checked import check_run
from laconic.recipe.entry import ModelInput
from laconic.recipe.estimate.copies import Copies, copies_of
from tests.recipe.test_stream import spelled

UNIFORM = {"compress": {"method": "kfac-svd:multiple=1", "keep": 0.6}}
SPECTRUM = {"compress": {**UNIFORM["compress"], "allocate": "spectrum"}}


def test_hidden_states_of_copies_are_those_that_were_estimated(
    tiny_model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from(spelled(tiny_model, texts, SPECTRUM, stream=True))
    checked = check_run(recipe, tmp_path / "out", ModelInput(name=recipe.model))
    assert checked.data is not None
    expected = copies_of(checked.empty, recipe.steps[0], checked.data.batches)
    assert expected is not None
    largest = {"measured": 0, "judged": 0}
    complete = HiddenStates.complete

    def noted(states: HiddenStates) -> Any:
        for name, size in largest.items():
            files = [file for file in tmp_path.glob(f".out.scratch-*/*/copies/{name}/*/*") if file.suffix != ".json"]
            largest[name] = max(size, sum(file.stat().st_size for file in files))
        return complete(states)

    monkeypatch.setattr(HiddenStates, "complete", noted)
    run(recipe, tmp_path / "out")
    assert 0.7 * expected.measured <= largest["measured"] <= expected.measured
    assert 0.7 * expected.judged <= largest["judged"] <= expected.judged


def test_both_copies_count(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    sizes = []
    for step in (UNIFORM, SPECTRUM):
        recipe = recipe_from(spelled(tiny_model, texts, step, stream=True))
        sizes.append(check_run(recipe, tmp_path / "out", ModelInput(name=recipe.model)).sizes)
    assert sizes[1].scratch > sizes[0].scratch and sizes[1].output == sizes[0].output


def test_more_blocks_take_more_time_each() -> None:
    # Of 3 blocks, the second one runs once more and the third one twice, and the head of two more copies.
    assert Copies(rows=2, blocks=3).extra_seconds(row_seconds=10, head_seconds=4) == 2 * (3 * 2 + 2 * 4)
