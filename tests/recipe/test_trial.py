"""One block of each kind stands for all blocks of its kind, and the time of a block counts as often."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from laconic.calibrate.passes import forward, random_batch
from laconic.compress import Shorten
from laconic.errors import UserError
from laconic.model.loading import load_streamed
from laconic.progress import Item
from laconic.recipe import recipe_from, run
from laconic.recipe.estimate import stopwatch
from laconic.recipe.estimate.stand_ins import trial_steps
from laconic.recipe.estimate.stopwatch import BlockTimer, block_in
from laconic.recipe.estimate.trial_folder import trial_folder
from laconic.recipe.estimate.truncation import truncate
from laconic.recipe.run import estimate_run
from tests.architectures import BY_NAME, Architecture
from tests.experts import MIXTURES

DENSE_FIRST = Architecture("deepseek-v3", MIXTURES["deepseek-v3"][0])


@pytest.mark.parametrize("architecture", [*(BY_NAME[name] for name in ("gpt2", "t5", "albert-groups")), DENSE_FIRST])
def test_every_block_has_one_that_stands_for_it(architecture: Architecture, tmp_path: Path) -> None:
    whole = architecture.lm()
    whole.model.save_pretrained(tmp_path / "model")
    lm = load_streamed(str(tmp_path / "model"))
    kept = truncate(lm)
    blocks = [path for _, found in lm.stacks() for path, _ in found]
    assert list(kept.counts) == blocks
    assert sum(kept.counts.values()) == sum(len(found) for _, found in whole.stacks()) == len(blocks) + kept.left_out
    with lm.loaned_on_call():
        forward(lm, random_batch(lm, 1, 8))


def test_equal_blocks_are_one(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 40}
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=5, **shape)).save_pretrained(tmp_path / "model")
    lm = load_streamed(str(tmp_path / "model"))
    assert dict(truncate(lm).counts) == {"model.layers.0": 5} and lm.model.config.num_hidden_layers == 1
    assert lm.loans is not None and set(lm.loans.paths) == {"model.layers.0", "model.embed_tokens", "lm_head"}


def test_the_time_of_a_block_counts_as_often_as_there_are_such_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    timer = BlockTimer({"h.0": 4, "h.1": 2})
    for _ in timer(["embedding", "h.0", ("h.1", "sites")], "Outer"):
        # Work within a block is part of its time.
        for _ in timer(["h.0"], "Inner"):
            now[0] += 1.0
    assert timer.further == 3 + 1 and timer.blocks == 4 + 2


class Noted:
    """A track that notes the loops over blocks, each with the items that name no block."""

    def __init__(self, blocks: list[str]) -> None:
        self.blocks, self.loops = blocks, list[str]()
        self.unnamed: list[str] = []

    def __call__(self, items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]:
        if "the blocks" in what:
            self.loops.append(what)
            self.unnamed += [what for item in items if block_in(item, self.blocks) is None]
        return items


@pytest.mark.parametrize(
    ("settings", "loops"),
    [
        ({"method": "gptq:bits=4,group_size=8"}, 1),
        ({"method": "gptq:bits=4,group_size=8", "sequential": True}, 1),
        ({"method": "rtn:bits=4"}, 1),
        ({"method": "kfac-svd:multiple=1", "keep": 0.6, "allocate": "spectrum"}, 7),
        ({"heads": 0.5, "importance": "taylor"}, 3),
        ({"channels": 0.5, "importance": "variance"}, 1),
    ],
    ids=["forward", "in order", "without data", "backward, and copies", "gates", "channels"],
)
def test_all_work_on_blocks_names_them(
    settings: dict[str, object], loops: int, tiny_model: Path, texts: Path, tmp_path: Path
) -> None:
    check_names([{"compress" if "method" in settings else "narrow": settings}], loops, tiny_model, texts, tmp_path)


def test_a_correction_names_its_blocks(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    check_names([{"compress": {"method": "rtn:bits=3"}}, {"correct": {}}], 2, tiny_model, texts, tmp_path)


def check_names(steps: Sequence[object], loops: int, tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    """A streamed run has some loops over blocks, and every item of them names its block."""
    recipe = recipe_from({
        "model": str(tiny_model), "data": str(texts), "samples": 6, "steps": steps, "stream": True,
    })  # fmt: skip
    noted = Noted([path for _, found in load_streamed(str(tiny_model)).stacks() for path, _ in found])
    run(recipe, tmp_path / "out", track=noted)
    assert len(noted.loops) == loops and not noted.unnamed


def test_what_a_killed_trial_left_is_removed(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    with trial_folder(output) as above:
        name = above.name
    assert above.parent == tmp_path and not list(tmp_path.iterdir())
    # One trial was killed before the folder of the output was made, another one after it.
    (tmp_path / name / "scratch").mkdir(parents=True)
    (tmp_path / "new" / name).mkdir(parents=True)
    (tmp_path / "new" / name / "part").touch()
    with trial_folder(output) as folder:
        assert folder == tmp_path / "new" / name and not list(folder.iterdir())
    assert list(tmp_path.iterdir()) == [tmp_path / "new"] and not list((tmp_path / "new").iterdir())


def test_a_trial_that_is_at_work_keeps_its_folder(tmp_path: Path) -> None:
    with trial_folder(tmp_path / "out") as folder:
        with pytest.raises(UserError, match="Another process measures"), trial_folder(tmp_path / "out"):
            pass
        assert folder.is_dir()


@pytest.mark.parametrize(
    "settings",
    [
        {"drop": 1, "select": "influence"},
        {"drop": 1, "select": "angular"},
        {"drop": 1, "select": "taylor"},
        {"drop": 1, "select": "last"},
        {"blocks": [1]},
    ],
    ids=str,
)
def test_the_time_of_dropping_blocks_is_measured(
    settings: dict[str, object], tiny_model: Path, texts: Path, tmp_path: Path
) -> None:
    steps = [{"shorten": settings}, {"compress": {"method": "gptq:bits=4,group_size=8"}}]
    recipe = {"model": str(tiny_model), "data": str(texts), "samples": 6, "steps": steps}
    found = estimate_run(recipe_from(recipe), tmp_path / "out")
    assert found.unmeasured is None and found.streamed is not None and found.streamed.seconds
    assert not list(tmp_path.iterdir())


def test_fewer_blocks_are_counted_after_some_were_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    lm, timer = BY_NAME["llama"].lm(), BlockTimer({"h.0": 8, "h.1": 1})
    [step] = trial_steps(lm, [Shorten(drop=1, select="last")], timer)
    step.apply(lm, None)
    # One of two blocks is dropped: of the whole model, not of that of the trial.
    assert timer.left == 0.5 and len(next(iter(lm.stacks()))[1]) == 2
    for _ in timer(["h.0", "h.1"], "Reading"):
        now[0] += 1.0
    assert timer.blocks == 4 + 1
