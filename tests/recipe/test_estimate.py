"""A dry run: time, memory and disk space from one block of each kind, and what follows from them before a run."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from transformers import AutoModel

import laconic
from laconic.cli.main import status
from laconic.compress import Narrow
from laconic.errors import Notice, UserError
from laconic.recipe import recipe_from, run
from laconic.recipe.checked import CheckedRun, check_run
from laconic.recipe.entry import ModelInput
from laconic.recipe.estimate import estimate as estimates
from laconic.recipe.estimate import trial
from laconic.recipe.estimate.disk import folder_bytes
from laconic.recipe.estimate.estimate import Costs, estimate
from laconic.recipe.estimate.shapes import sizes_of
from laconic.recipe.run import estimate_run
from laconic.recipe.streaming import scratch_folder
from tests.architectures import Architecture
from tests.cli.printed import Output, said
from tests.experts import MIXTURES

GPTQ = {"compress": {"method": "gptq:bits=4,group_size=8"}}
SPECTRUM = {"compress": {"method": "kfac-svd:multiple=1", "keep": 0.6, "allocate": "spectrum"}}
ANCHORED = {"compress": {"method": "gptq:bits=4,group_size=8", "anchored": True}}
Spelled = Callable[..., dict[str, object]]


@pytest.fixture
def spelled(tiny_model: Path, texts: Path) -> Spelled:
    """A recipe for the tiny model."""

    def spell(*steps: dict, **settings: object) -> dict[str, object]:
        return {"model": str(tiny_model), "data": str(texts), "samples": 6, "steps": list(steps), **settings}

    return spell


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models count as large, and no memory is free."""
    monkeypatch.setattr("laconic.recipe.checked.LARGE", 0)
    monkeypatch.setattr("laconic.recipe.checked.free_memory", lambda: 1000)


def checked(recipe: dict[str, object], output: Path) -> CheckedRun:
    parsed = recipe_from(recipe)
    return check_run(parsed, output, ModelInput(name=parsed.model))


@pytest.mark.parametrize("step", [GPTQ, SPECTRUM], ids=["forward", "backward, two passes"])
def test_a_dry_run_measures_and_leaves_nothing(step: dict, spelled: Spelled, tmp_path: Path) -> None:
    found = estimate_run(recipe_from(spelled(step)), tmp_path / "out")
    assert found.streamed is not None and found.unmeasured is None and not found.streams
    assert found.streamed.seconds and found.in_memory.seconds and found.streamed.scratch > 0
    assert found.streamed.memory and found.in_memory.memory and found.in_memory.scratch == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [GPTQ, {"compress": {"method": "wanda", "keep": 0.5}}], ids=["codes", "masks"])
def test_the_bytes_of_the_result_follow_from_shapes(step: dict, spelled: Spelled, tmp_path: Path) -> None:
    sizes = checked(spelled(step), tmp_path / "out").sizes
    assert sizes.output == run(recipe_from(spelled(step)), tmp_path / "out").lm.size()[1]


def test_what_is_measured_is_remembered(spelled: Spelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = estimate(checked(spelled(GPTQ, seed=7), tmp_path / "out"))
    failing = Mock(side_effect=UserError("It was measured again."))
    monkeypatch.setattr(estimates, "run_trial", failing)
    again = estimate(checked(spelled(GPTQ, seed=7), tmp_path / "out"))
    assert first.streamed is not None and again.streamed is not None
    assert again.streamed.memory == first.streamed.memory
    other = estimate(checked(spelled(GPTQ, seed=8), tmp_path / "out"))
    assert other.unmeasured == "It was measured again." and other.in_memory.seconds is None
    assert other.streamed is not None and other.streamed.seconds is None and other.streamed.scratch > 0


def test_time_is_not_invented_for_what_needs_the_whole_model(spelled: Spelled, tmp_path: Path) -> None:
    found = laconic.run(spelled(ANCHORED), tmp_path / "out", dry_run=True)
    assert found.estimate.streamed is None and found.estimate.in_memory.seconds is None
    assert "anchored" in str(found.estimate.unmeasured) and "not measured" in str(found)
    assert found.estimate.in_memory.memory is not None


def test_both_ways_are_printed(capsys: Output, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ("compress", tiny_model, "--method", "rtn:bits=4", "-o", tmp_path / "out", "--dry-run")
    assert status([str(argument) for argument in arguments]) == 0
    told = capsys.readouterr().out
    assert "in memory" in told and "streamed" in told and "for the result" in told
    values = said(capsys, *arguments)
    ways = [values[name] for name in ("streamed", "in_memory")]
    outputs = [way["output"] for way in ways if isinstance(way, dict)]
    assert values["streams"] is False and outputs[0] == outputs[1]
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_is_streamed(large: None, spelled: Spelled, tmp_path: Path) -> None:
    with pytest.warns(Notice) as notices:
        record = run(recipe_from(spelled(GPTQ, seed=11)), tmp_path / "out")
    assert record.lm.loans is not None and "stream" not in (tmp_path / "out" / "recipe.yaml").read_text()
    sentences = [str(notice.message) for notice in notices]
    assert "--no-stream" in sentences[0] and "0.001 MB are free" in sentences[0]
    assert sentences[1].startswith("The run takes about ") and sentences[1].endswith("(--dry-run measures the time).")


def test_no_hint_is_given_where_a_dry_run_measures_nothing(large: None, spelled: Spelled, tmp_path: Path) -> None:
    with pytest.warns(Notice, match=r"^The run takes about .* of memory and .* for the result\.$"):
        run(recipe_from(spelled(ANCHORED)), tmp_path / "out")


def test_the_files_of_a_model_in_memory_are_not_read(
    large: None, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModel.from_pretrained(tiny_model)
    read = Mock(side_effect=UserError("The weights are damaged."))
    monkeypatch.setattr("laconic.recipe.streaming.find_weights", read)
    with pytest.warns(Notice, match=r"^The run takes about .* for the result\.$"):
        laconic.compress(model, "rtn:bits=4", output=tmp_path / "out")
    assert not read.called


@pytest.mark.parametrize(
    ("costs", "sentence"),
    [
        (
            {"seconds": 7.0, "memory": 3_000_000, "scratch": 2_000_000},
            "7 s, 3 MB of memory, 2 MB of scratch files and ",
        ),
        ({"seconds": None, "memory": 3_000_000, "scratch": 0}, "3 MB of memory and "),
        ({"seconds": None, "memory": None, "scratch": 0}, ""),
    ],
)
def test_unknown_costs_are_left_out_of_the_sentence(costs: dict[str, Any], sentence: str) -> None:
    assert str(Costs(output=1_000_000, **costs)) == f"{sentence}1 MB for the result"


def test_steps_that_need_several_blocks_are_refused_before_anything_is_measured(
    spelled: Spelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "load_streamed", Mock(side_effect=AssertionError))
    later = {"compress": {"method": "rtn:bits=4", "targets": ["*.1.*"]}}
    found = laconic.run(spelled(later), tmp_path / "out", dry_run=True)
    assert "not measured. The steps cannot run on a model that has only one block of each kind: " in str(found)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "output", "reason"),
    [("loaded", "out", "The model is in memory already; give"), ("named", None, "There is no output, the folder")],
)
def test_the_reason_names_no_argument_that_nobody_gave(
    model: str, output: str | None, reason: str, tiny_model: Path, tmp_path: Path
) -> None:
    source = AutoModel.from_pretrained(tiny_model) if model == "loaded" else tiny_model
    folder = None if output is None else tmp_path / output
    found = laconic.compress(source, "rtn:bits=4", output=folder, dry_run=True)
    assert f"The time was not measured. {reason}" in str(found) and "leave out stream" not in str(found)


def test_a_dry_run_counts_the_model_once_for_each_process(
    spelled: Spelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, output = spelled(GPTQ), tmp_path / "out"
    needed = checked(recipe, output).sizes.in_memory
    monkeypatch.setattr("laconic.recipe.checked.LARGE", 0)
    monkeypatch.setattr("laconic.recipe.checked.free_memory", lambda: needed)
    assert not estimate_run(recipe_from(recipe), output).streams
    monkeypatch.setattr("laconic.recipe.checked.local_world_size", lambda: 2)
    with pytest.warns(Notice, match="With the whole model in memory"):
        assert estimate_run(recipe_from(recipe), output).streams


def test_files_that_vanish_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stays").write_bytes(bytes(10))
    (tmp_path / "goes").write_bytes(bytes(20))
    found = list(os.walk(tmp_path))
    (tmp_path / "goes").unlink()
    monkeypatch.setattr("laconic.recipe.estimate.disk.os.walk", lambda _: found)
    assert folder_bytes(tmp_path) == 10


def test_a_run_says_what_was_measured_for_it(
    large: None, spelled: Spelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laconic.recipe.checked.LARGEST", 0)
    with pytest.warns(Notice, match=r"^The run takes about \d+ s, .* of memory, .* of scratch files and .* result\.$"):
        run(recipe_from(spelled(GPTQ, stream=True, seed=9)), tmp_path / "out")


@pytest.mark.parametrize(("step", "stream"), [(GPTQ, False), (ANCHORED, None)], ids=["declined", "impossible"])
def test_it_is_not_streamed_where_that_is_declined_or_impossible(
    step: dict, stream: bool | None, large: None, spelled: Spelled, tmp_path: Path
) -> None:
    assert not checked(spelled(step, **({} if stream is None else {"stream": stream})), tmp_path / "out").streams


def test_unknown_memory_decides_nothing(
    large: None, spelled: Spelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laconic.recipe.checked.free_memory", lambda: None)
    assert not checked(spelled(GPTQ), tmp_path / "out").streams


def test_a_run_that_was_streamed_and_stopped_is_streamed_again(
    large: None, spelled: Spelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = spelled(GPTQ, max_length=16)
    monkeypatch.setattr("laconic.recipe.checked.free_memory", lambda: 2**60)
    assert not checked(recipe, tmp_path / "out").streams
    scratch_folder(recipe_from(recipe), tmp_path / "out").mkdir()
    assert checked(recipe, tmp_path / "out").streams


@pytest.mark.parametrize(("stream", "parts"), [(True, "scratch files"), (False, "for the result")])
def test_a_disk_without_room_is_an_error_before_anything_is_written(
    stream: bool, parts: str, spelled: Spelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laconic.recipe.estimate.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=2000))
    with pytest.raises(UserError, match=rf"has 0\.002 MB free, and the run needs about .*{parts}.*another disk"):
        run(recipe_from(spelled(GPTQ, stream=stream)), tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


def test_what_an_interrupted_run_has_written_needs_no_room(
    spelled: Spelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ = checked(spelled(GPTQ, stream=True), tmp_path / "out")
    room = run_.sizes.output + run_.sizes.scratch // 2
    monkeypatch.setattr("laconic.recipe.estimate.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=room))
    with pytest.raises(UserError, match="free some space"):
        run_.check_disk()
    monkeypatch.setattr("laconic.recipe.checked.folder_bytes", lambda _: run_.sizes.scratch - run_.sizes.scratch // 2)
    run_.check_disk()


def test_the_command_line_ends_with_2_where_the_disk_is_full(
    capsys: Output, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laconic.recipe.estimate.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    assert status(["compress", str(tiny_model), "--method", "rtn:bits=4", "-o", str(tmp_path / "out")]) == 2
    assert "free some space" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "places"),
    [
        ({"shorten": {"drop": 1, "select": "taylor"}}, 3 + 2),
        ({"shorten": {"drop": 1, "select": "influence"}}, 6),
        ({"shorten": {"drop": 1, "select": "angular"}}, 6),
        ({"correct": {}}, 6),
    ],
    ids=["gradients of gates", "points", "points of runs", "the original beside the model"],
)
def test_all_hidden_states_count(step: dict, places: int, spelled: Spelled, tmp_path: Path) -> None:
    few = checked(spelled(step), tmp_path / "out")
    many = checked(spelled(step, samples=12), tmp_path / "out")
    assert few.data is not None and many.data is not None
    tokens = [sum(batch["input_ids"].numel() for batch in run_.data.batches) for run_ in (few, many) if run_.data]
    more = 4 * few.empty.model.config.hidden_size * (tokens[1] - tokens[0])
    assert more > 0 and many.sizes.scratch - few.sizes.scratch >= places * more


def test_parts_of_a_backward_pass_count_beside_the_states_that_are_left(spelled: Spelled, tmp_path: Path) -> None:
    # The parts are larger than the hidden states of one short row, some of which are left when all parts are written.
    row = {"samples": 1, "max_length": 8}
    measured = checked(spelled({"narrow": {"channels": 0.5}}, **row), tmp_path / "out").sizes
    parts = checked(spelled({"narrow": {"channels": 0.5, "importance": "magnitude", "refit": False}}), tmp_path / "out")
    assert measured.scratch > parts.sizes.scratch > 0


def test_blocks_without_experts_count_beside_those_without_channels() -> None:
    lm = Architecture("mixtral", MIXTURES["mixtral"][0]).lm()
    both = sizes_of(lm, [Narrow(experts=0.5, channels=0.5, importance="magnitude", refit=False)], None)
    channels = sizes_of(lm, [Narrow(channels=0.5, importance="magnitude", refit=False)], None)
    experts = sizes_of(lm, [Narrow(experts=0.5)], None)
    assert both.scratch > experts.scratch > 0 and both.scratch != channels.scratch
