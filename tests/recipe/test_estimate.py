"""A dry run: time, memory and disk space from one block of each kind, and what follows from them before a run."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

import laconic
from laconic.cli.main import status
from laconic.errors import Notice, UserError
from laconic.recipe import recipe_from, run
from laconic.recipe.checked import CheckedRun, check_run
from laconic.recipe.entry import ModelInput
from laconic.recipe.estimate import estimate as estimates
from laconic.recipe.estimate.estimate import estimate
from laconic.recipe.run import estimate_run
from laconic.recipe.streaming import scratch_folder
from tests.cli.printed import Output, said

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
