"""Checkpoints of training: a killed run continues, a finished one is not repeated, and one of two waits."""

import threading
from pathlib import Path

import pytest
import torch

from laconic.compress import Compress, Narrow, Shorten, Step
from laconic.methods import Int8, KMeans, Magnitude, Plus, Rtn, Svd
from laconic.model import LanguageModel
from laconic.recover import Distil, Finetune, loop
from laconic.recover.checkpoints import training_folder
from tests.architectures import outputs
from tests.recover.ground import SHORT, data_for, lm_of, with_original

TASKS = ("bert-classifier", "bert-masked", "gpt2", "llama", "t5", "bart", "albert-masked")
FAMILIES: dict[str, Step] = {
    "low rank": Compress(method=Svd(multiple=1), keep=0.5),
    "zeros": Compress(method=Magnitude(sparsity=0.6), allocate="global"),
    "pattern": Compress(method=Magnitude(pattern="2:4")),
    "codes": Compress(method=Rtn(bits=3, group_size=8)),
    "codebook": Compress(method=KMeans(bits=2, group_size="channel")),
    "int8": Compress(method=Int8()),
    "sum": Compress(method=Plus(base=Rtn(bits=2, group_size=8)), keep=0.4),
    "narrow": Narrow(heads=0.5, channels=0.5),
    "shorten": Shorten(drop=1, select="last"),
}


class KilledError(Exception):
    """Stands for a power cut."""


def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step = Finetune(**{**SHORT, "evaluations": 6})

    def trained(folder: str) -> LanguageModel:
        monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / folder))
        lm = lm_of("bert-classifier")
        lm.model.config.hidden_dropout_prob = 0.1
        lm.model.train()
        step.apply(lm, data_for(lm))
        return lm

    unbroken = trained("whole")
    seen, on_save = [], loop.DistillationTrainer._save

    def kill(trainer, *args, **kwargs) -> None:
        on_save(trainer, *args, **kwargs)
        seen.append(trainer.state.global_step)
        if len(seen) == 3:
            # In the midst of a checkpoint, which must not be gone on from.
            raise KilledError

    monkeypatch.setattr(loop.DistillationTrainer, "_save", kill)
    with pytest.raises(KilledError):
        trained("killed")
    assert list((tmp_path / "killed").rglob("checkpoint-*"))
    resumed = trained("killed")
    assert seen[3] == seen[2], "it goes on behind the last checkpoint that is whole"
    for (name, tensor), other in zip(unbroken.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(tensor, other), name
    # The result is kept: a third run trains nothing.
    again = trained("killed")
    assert len(seen) == 3 + 5
    assert torch.equal(outputs(again.model.eval()), outputs(unbroken.model.eval()))


def test_trainings_that_may_run_are_not_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    monkeypatch.setattr("laconic.recover.checkpoints.cache_limit", lambda: 10)
    with training_folder("done") as done, training_folder("running") as running:
        (done / "history.json").write_text("{}")
        for folder in (done, running):
            (folder / "large").write_bytes(bytes(100))
        with training_folder("next"):
            assert running.is_dir() and not done.is_dir()


def test_of_two_runs_of_one_training_the_second_waits_for_what_the_first_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    entered: list[str] = []

    def second() -> None:
        with training_folder("key") as folder:
            entered.append((folder / "history.json").read_text())

    waiting = threading.Thread(target=second)
    with training_folder("key") as folder:
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not entered
        (folder / "history.json").write_text("done")
    waiting.join(30)
    assert entered == ["done"]


def test_a_training_that_is_done_asks_its_teacher_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    found = []
    for _ in range(2):
        lm = with_original(lm_of("bert-classifier"))
        Compress(method=Magnitude(sparsity=0.5)).apply(lm, None)
        Distil(**SHORT).apply(lm, data_for(lm))
        found.append(outputs(lm.model.eval()))
        monkeypatch.setattr("laconic.recover.training.precompute_predictions", None)
    assert torch.equal(*found)
