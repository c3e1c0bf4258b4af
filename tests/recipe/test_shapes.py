"""The scratch files that are estimated from shapes are those that a streamed run writes."""

from pathlib import Path

import pytest

from laconic.calibrate.spill import HiddenStates
from laconic.model import loans
from laconic.recipe import recipe_from, run
from laconic.recipe.checked import check_run
from laconic.recipe.entry import ModelInput
from laconic.recipe.estimate.disk import folder_bytes
from laconic.recipe.streaming import scratch_folder
from laconic.store import save
from tests.evaluate.models import with_tokenizer

HEADER = 6144
"""More than the bytes of the header of a part and of its lists of hidden states, which the estimate leaves out."""
STEPS = {
    "backward": {"method": "kfac-svd:multiple=1", "keep": 0.6},
    "forward": {"method": "gptq:bits=4,group_size=8"},
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_largest_scratch_folder_is_estimated(
    step: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(with_tokenizer("llama"), tmp_path / "model")
    (tmp_path / "texts.txt").write_text("it was the best of times it was the worst of times\n" * 64)
    recipe = recipe_from({
        "model": str(tmp_path / "model"), "data": str(tmp_path / "texts.txt"), "samples": 64,
        "steps": [{"compress": step}], "stream": True,
    })  # fmt: skip
    checked = check_run(recipe, tmp_path / "out", ModelInput(name=recipe.model))
    folder, sizes = scratch_folder(recipe, tmp_path / "out"), [0]
    for owner, name in ((HiddenStates, "complete"), (loans, "write_part")):
        write = getattr(owner, name)

        def measure(*arguments, write=write, **named):
            written = write(*arguments, **named)
            sizes.append(folder_bytes(folder))
            return written

        monkeypatch.setattr(owner, name, measure)
    run(recipe, tmp_path / "out")
    blocks = [path for _, found in checked.empty.stacks() for path in found]
    assert 0 <= max(sizes) - checked.sizes.scratch <= len(blocks) * HEADER
