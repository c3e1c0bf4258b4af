"""Training and correcting on two processes: what one does, up to rounding, and the same to the last bit in both."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainingArguments

from laconic.compress import Compress, Step
from laconic.methods import Magnitude, Svd
from laconic.processes import is_rank_zero
from laconic.recipe.flow import apply_steps
from laconic.recover import Correct, Distil, Finetune, Match, loop
from tests.recover.ground import data_for, lm_of

PACE = {"epochs": 2.0, "batch_size": 8, "evaluations": 2, "learning_rate": 3e-3}
SHRUNK = Compress(method=Svd(multiple=1), keep=0.5)
CASES: dict[str, tuple[str, list[Step]]] = {
    "finetune": ("bert-classifier", [SHRUNK, Finetune(**PACE)]),
    "finetune, zeros": ("llama", [Compress(method=Magnitude(sparsity=0.5)), Finetune(**PACE)]),
    "distil": ("llama", [SHRUNK, Distil(**PACE)]),
    "distil, layers": ("bert-classifier", [SHRUNK, Distil(**PACE, hidden=1.0)]),
    "distil, a pooler that nothing reads": ("bert-base", [SHRUNK, Distil(**PACE)]),
    "distil, one layer": (
        "bert-classifier",
        [SHRUNK, Distil(**PACE, logits=0.0, matches=(Match(teacher=1, student=1),))],
    ),
    "finetune, adapters": ("bert-classifier", [SHRUNK, Finetune(**PACE, lora=2)]),
    "correct": ("bert-classifier", [SHRUNK, Correct()]),
}


@pytest.fixture(autouse=True)
def trained_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process must not go on with what two have trained, nor the other way round."""
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))


def changed_by(case: str, steps: list[Step], cache: str) -> tuple[Tensor, dict[str, Any]]:
    """The weights in one row, and what the last step found."""
    lm = lm_of(CASES[case][0])
    for module in lm.model.modules():
        if isinstance(module, nn.Dropout):
            # What is dropped hangs on the rows of a batch together.
            module.p = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACONIC_CACHE", cache)
        # An odd number of rows is held out, which two cannot share evenly.
        changed, changes = apply_steps(lm, steps, data_for(lm, 50))
    return torch.cat([tensor.detach().float().flatten() for tensor in changed.model.parameters()]), dict(
        changes.found[-1]
    )


def losses_of(found: dict[str, Any]) -> list[float]:
    """On held-out rows, in order."""
    if "kl_after" in found:
        return [found["kl_before"], found["kl_after"]]
    ((_, history),) = found.items()
    return [line["eval_loss"] for line in history["lines"] if "eval_loss" in line]


@pytest.mark.parametrize("case", CASES)
def test_two_do_what_one_does(pair, case: str, tmp_path: Path) -> None:
    steps = CASES[case][1]
    (first, found), (second, also_found) = pair(changed_by, case, steps, str(tmp_path / "two"))
    assert torch.equal(first, second)
    assert losses_of(found) == losses_of(also_found)
    start, _ = changed_by(case, steps[:-1], str(tmp_path / "start"))
    alone, found_alone = changed_by(case, steps, str(tmp_path / "one"))
    # A mean over tokens is one of the processes' own means, whose rows may be of other lengths.
    assert losses_of(found) == pytest.approx(losses_of(found_alone), rel=1e-2)
    assert (first - alone).norm() <= 0.1 * (alone - start).norm()


def test_checkpoints_stay_until_the_slowest_has_read_them(pair, tmp_path: Path) -> None:
    (first, _), (second, _) = pair(slow_to_read, str(tmp_path))
    assert torch.equal(first, second)


def slow_to_read(cache: str) -> tuple[Tensor, dict[str, Any]]:
    """As `changed_by`, but whoever is not the first comes late to the best checkpoint."""

    def slow(path: Path) -> dict[str, Tensor]:
        if not is_rank_zero():
            time.sleep(2)
        return load_file(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_file", slow)
        return changed_by("distil", CASES["distil"][1], cache)


def test_processes_that_accelerate_does_not_know_of_are_refused(pair, tmp_path: Path) -> None:
    said = pair(unknown_to_accelerate, str(tmp_path))
    assert all("accelerate has 1; start them by torchrun" in sentence for sentence in said)


def unknown_to_accelerate(cache: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingArguments, "world_size", 1)
        changed_by("distil", CASES["distil"][1], cache)
