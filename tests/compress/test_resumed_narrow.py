"""A step that narrows a streamed model, and that was stopped, goes on to the same model."""

from pathlib import Path
from typing import Any

import pytest

from laconic.calibrate import Calibration
from laconic.compress import Narrow, Step, kept_choice, narrow_streamed
from laconic.compress.step import Outcome
from laconic.model import LanguageModel, load
from laconic.model.loading import load_streamed
from laconic.store.part_structures import PartStructures
from tests.calibrate.test_collect_stats import labelled_batches
from tests.loaned import MODELS, assert_equal
from tests.stopped import StopError, stop_at


def apply_anew(folder: Path, step: Step, data: Calibration) -> tuple[LanguageModel, Outcome]:
    """Apply the step to a model that was just loaded, with the scratch folder of the runs before."""
    lm = load_streamed(str(folder / "model"), folder / "scratch", structures=PartStructures())
    assert lm.loans is not None
    lm.loans.begin("0")
    return lm, step.apply(lm, data)


@pytest.mark.parametrize(
    ("name", "step", "stops"),
    [
        (
            "llama",
            Narrow(channels=0.5, importance="variance", ranking="global", sequential=True, add_bias=True),
            (0, 1),
        ),
        ("bert-classifier", Narrow(keep=0.6), (0, 1, 1)),
        ("t5", Narrow(heads=0.5, channels=0.5), (0, 1, 1, 2)),
        ("mpnet-masked", Narrow(heads=0.5, channels=0.5, importance="taylor"), (1, 2)),
        ("qwen3-moe", Narrow(experts=0.5, heads=0.5), (0, 1)),
    ],
)
def test_a_stopped_step_goes_on_to_the_same_model(
    name: str, step: Step, stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MODELS[name]().save_pretrained(tmp_path / "model")
    lm = load(str(tmp_path / "model"))
    data = Calibration(labelled_batches(lm, 2))
    expected = step.apply(lm, data)
    remove, seen = narrow_streamed.remove_parts, 0
    for stop in stops:
        with monkeypatch.context() as patch, pytest.raises(StopError):
            patch.setattr(narrow_streamed, "remove_parts", stop_at(stop, remove))
            apply_anew(tmp_path, step, data)
    with monkeypatch.context() as patch:

        def count(*arguments: Any, **options: Any) -> None:
            nonlocal seen
            seen += 1
            remove(*arguments, **options)

        patch.setattr(narrow_streamed, "remove_parts", count)
        # The parts that stay were chosen in the first run.
        patch.setattr(kept_choice, "store_json", None)
        streamed, outcome = apply_anew(tmp_path, step, data)
    assert outcome == expected and seen > 0
    with streamed.on_loan(""):
        assert_equal(streamed.model, lm.model)
    # A step that is finished changes no block again.
    with monkeypatch.context() as patch:
        patch.setattr(narrow_streamed, "remove_parts", None)
        streamed, outcome = apply_anew(tmp_path, step, data)
    assert outcome == expected
    with streamed.on_loan(""):
        assert_equal(streamed.model, lm.model)
