"""A streamed plan by predicted losses is corrected and compared as in memory, and gives the same plan and tensors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.compress import Compress, Outcome, kl_metric
from laconic.compress.allocators.corrected import ALLOCATED, COPIES
from laconic.methods import Gptq, KfacPrune, KfacSvd
from laconic.model import LanguageModel, load, predict
from laconic.model.loading import load_streamed
from laconic.store.part_structures import PartStructures
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import MIXTURES

STEPS = {
    "ranks": Compress(method=KfacSvd(multiple=1), keep=0.5, allocate="spectrum"),
    "shared ranks, all matrices": Compress(
        method=KfacSvd(multiple=1), keep=0.5, allocate="spectrum", share_inputs=True, targets=("all",)
    ),
    "bits": Compress(method=Gptq(), keep=0.16, allocate="spectrum"),
    "zeros": Compress(method=KfacPrune(), keep=0.6, allocate="spectrum"),
}
BATCHES = 2
TOLERANCE = 1e-2
"""The order in which the gradients of a decoder's blocks are summed for the encoder may change the last bits."""


def both_ways(
    step: Compress, name: str, folder: Path, *, halved: bool = False
) -> tuple[LanguageModel, Outcome, LanguageModel, Outcome]:
    """A model compressed in memory, and the same one streamed."""
    model = MIXTURES[name][0]() if name in MIXTURES else BY_NAME[name].model()
    (model.bfloat16() if halved else model).save_pretrained(folder / "model")
    lm = load(str(folder / "model"))
    streamed = load_streamed(str(folder / "model"), folder / "scratch", structures=PartStructures())
    data = Calibration(labelled_batches(lm, BATCHES))
    return lm, step.apply(lm, data), streamed, step.apply(streamed, data)


def check_same(lm: LanguageModel, streamed: LanguageModel) -> None:
    with streamed.on_loan(""):
        expected, found = lm.model.state_dict(), streamed.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@torch.no_grad()
def check_same_predictions(lm: LanguageModel, streamed: LanguageModel) -> None:
    """The signs of singular vectors depend on the last bits, and their products do not."""
    (batch,) = labelled_batches(lm, 1)
    with streamed.loaned_on_call():
        expected, found = (predict(model, batch)[0].values for model in (lm, streamed))
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:.*saw fewer tokens")
@pytest.mark.parametrize("name", ["llama", "bert-classifier", "t5", "mixtral"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_plan_and_the_tensors_are_those_in_memory(step: Compress, name: str, tmp_path: Path) -> None:
    if name == "t5" and step.targets == ("all",):
        step = replace(step, targets=("blocks", "head"))
    lm, expected, streamed, outcome = both_ways(step, name, tmp_path)
    assert outcome.plan == expected.plan and outcome.after == expected.after
    kl, expected_kl = (found.found[ALLOCATED] for found in (outcome, expected))
    assert kl["taken"] == expected_kl["taken"]
    assert kl["kl"] == pytest.approx(expected_kl["kl"], rel=TOLERANCE)
    (check_same_predictions if name == "t5" else check_same)(lm, streamed)
    assert not (tmp_path / "scratch" / COPIES).exists()


def test_sizes_are_those_of_the_stored_dtype(tmp_path: Path) -> None:
    _, expected, streamed, outcome = both_ways(STEPS["bits"], "llama", tmp_path, halved=True)
    assert streamed.dtype == torch.bfloat16 and outcome.plan == expected.plan and outcome.nbytes == expected.nbytes


def test_many_logits_are_computed_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl_metric, "LOGITS", 120)
    _, expected, _, outcome = both_ways(STEPS["ranks"], "t5", tmp_path)
    assert outcome.found[ALLOCATED]["kl"] == pytest.approx(expected.found[ALLOCATED]["kl"], rel=TOLERANCE)
