"""Every family of steps on classifiers of tokens, on models that find answers and on those that choose; all reload."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.compress import Compress, Narrow, Shorten, ShrinkHeads, Step
from laconic.formats import Format
from laconic.methods import Drone, Gptq, KfacPrune, KfacSvd
from laconic.model import LanguageModel, ModelTask, divergence, load, predict
from laconic.model.task import AUTO_CLASSES
from laconic.store import save
from tests.architectures import batch_for
from tests.task_models import ANSWER, CHOICE, TASK_MODELS, TASKS, TOKENS, other_task_models

EVERYTHING = ("all",)
STEPS: dict[str, Callable[[], Step]] = {
    "low rank": lambda: Compress(method=KfacSvd(), keep=0.5, allocate="spectrum", targets=EVERYTHING),
    "pruned": lambda: Compress(method=KfacPrune(sparsity=0.5), targets=EVERYTHING),
    "quantized": lambda: Compress(method=Gptq(bits=4, group_size=8), targets=EVERYTHING),
    "anchored": lambda: Compress(method=Drone(), keep=0.6, anchored=True),
    "narrow": lambda: Narrow(heads=0.5, channels=0.5),
    "shorten": lambda: Shorten(drop=1),
    "gates": lambda: Shorten(drop=1, select="taylor", parts="sublayers"),
    "linear": lambda: Shorten(drop=1, replace="linear"),
    "shrink": lambda: ShrinkHeads(size=5),
}
CASES = [
    *((f"bert-{CHOICE.value}", step) for step in STEPS),
    *((f"bert-{task.value}", step) for task in (TOKENS, ANSWER) for step in ("low rank", "gates")),
    *(
        pytest.param(name, "low rank", marks=pytest.mark.slow)
        for name in TASK_MODELS
        if not name.startswith("bert-") and name != f"bart-{ANSWER.value}"
    ),
    (f"bart-{ANSWER.value}", "low rank"),
]
"""Every step where each row has several sequences; one with gradients for every other head and architecture."""


def data_for(lm: LanguageModel) -> Calibration:
    return Calibration([batch_for(lm.model, seed) for seed in range(4)])


@pytest.mark.parametrize(("name", "step"), CASES)
def test_every_step_compresses_and_reloads(tmp_path: Path, name: str, step: str) -> None:
    compress_and_reload(tmp_path / "small", TASK_MODELS[name].lm(), STEPS[step]())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.slow
def test_every_other_architecture_has_its_heads(tmp_path: Path, task: ModelTask) -> None:
    names = [name for name in other_task_models() if name.endswith(task.value)]
    assert len(names) >= (3 if task is CHOICE else 15)
    for name in names:
        compress_and_reload(tmp_path / name, other_task_models()[name].lm(), STEPS["low rank"]())


def compress_and_reload(folder: Path, original: LanguageModel, step: Step) -> None:
    """Compress a copy, and check that the folder gives the same predictions and a card for the task."""
    lm, data = replace(original.copy(), original=original), data_for(original)
    step.check(lm)
    outcome = step.apply(lm, data)
    assert outcome.nbytes < outcome.dense_nbytes
    batch = batch_for(original.model, seed=9)
    with torch.no_grad():
        before, after = predict(original, batch)[0], predict(lm, batch)[0]
        assert divergence(before, after).isfinite().all() and not torch.equal(before.values, after.values)
        save(lm, folder)
        again = load(str(folder))
        assert again.task is original.task and type(again.model) is type(original.model)
        torch.testing.assert_close(predict(again, batch)[0].values, after.values)
    card = (folder / "README.md").read_text()
    assert f"pipeline_tag: {original.task.value}" in card
    assert f"{AUTO_CLASSES[original.task][0].__name__}.from_pretrained" in card


@pytest.mark.parametrize(("task", "head"), [(TOKENS, "classifier"), (ANSWER, "qa_outputs"), (CHOICE, "classifier")])
def test_the_head_is_a_matrix_like_others(task: str, head: str) -> None:
    lm = TASK_MODELS[f"bert-{task}"].lm()
    (site,) = (site for site in lm.sites(("head",)) if site.role.value == "output")
    assert site.name == head
    Compress(method=Gptq(bits=8), targets=("head",)).apply(lm, data_for(lm))
    assert isinstance(lm.model.get_submodule(head), Format)
    assert not any(isinstance(module, Format) for module in lm.model.bert.encoder.modules())


@pytest.mark.parametrize("task", TASKS)
def test_more_bytes_are_nearer(task: str) -> None:
    original = TASK_MODELS[f"bert-{task}"].lm()
    data = data_for(original)
    losses = []
    for keep in (0.4, 0.9):
        lm = original.copy()
        Compress(method=KfacSvd(), keep=keep).apply(lm, data)
        with torch.no_grad():
            pairs = [(predict(original, batch)[0], predict(lm, batch)[0]) for batch in data.batches]
        losses.append(torch.cat([divergence(*pair) for pair in pairs]).mean().item())
    assert losses[0] > 2 * losses[1] > 0
