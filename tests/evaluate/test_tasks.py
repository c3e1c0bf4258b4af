"""Every name of a task is resolved by `find_task`, over one table of kinds that is read at each call."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError
from laconic.evaluate import tasks
from laconic.evaluate.eval_task import EvalTask, TaskResult, source_of
from laconic.evaluate.tasks import FidelityRows, find_task, select_tasks, standalone_tasks, task_kinds
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track
from laconic.registry import Registry

NAMES = {
    "glue/sst2": "glue/sst2",
    "GLUE/SST-2": "glue/sst2",
    "multi-label:a.jsonl": "a.jsonl",
    "token-classification:a.conll": "a.conll",
    "Question-Answering:dev.json": "dev.json",
    "multiple-choice:piqa": "piqa",
    "lama": "lama",
    "lama/trex": "lama/trex",
    "blimp": "blimp",
    "blimp/island_effects": "blimp/island_effects",
    "harness/boolq": "harness/boolq",
    "perplexity:builtin:pydoc": "builtin:pydoc",
    "seq2seq:pairs.tsv": "pairs.tsv",
    "fidelity:builtin:pydoc": "builtin:pydoc",
}


@dataclass(frozen=True)
class Length(EvalTask):
    """A kind of task from elsewhere."""

    prefix: ClassVar[str] = "length"
    spellings: ClassVar[tuple[str, ...]] = ("length:SOURCE",)
    kinds: ClassVar[tuple[ModelTask, ...]] = (ModelTask.CAUSAL,)

    text: str

    @classmethod
    def from_name(cls, name: str) -> "Length":
        return cls(source_of(name))

    @property
    def name(self) -> str:
        return f"length:{self.text}"

    @property
    def source(self) -> str:
        return self.text

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        raise NotImplementedError


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_task_is_found_by_name(name: str) -> None:
    assert find_task(name).source == NAMES[name]


def test_kinds_have_prefixes_of_their_own_and_spellings_that_begin_with_them() -> None:
    kinds = task_kinds()
    assert len({kind.prefix for kind in kinds}) == len(kinds)
    assert all(spelling.startswith(kind.prefix) for kind in kinds for spelling in kind.spellings)
    assert {kind.prefix for kind in kinds} == {find_task(name).prefix for name in NAMES}


def test_a_kind_from_elsewhere_is_found_when_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"There is no task 'length:a\.txt'"):
        find_task("length:a.txt")
    kinds = {kind.prefix: kind for kind in (*tasks.TASK_KINDS, Length)}
    monkeypatch.setattr(tasks, "TASK_REGISTRY", Registry("laconic.tasks", "task", kinds, check=lambda *_: None))
    assert find_task("length:a.txt") == Length("a.txt")
    with pytest.raises(UserError, match=r"known are .*length:SOURCE"):
        find_task("lenght")


def test_rows_to_compare_on_are_no_task_of_a_model_alone() -> None:
    assert standalone_tasks(["fidelity:builtin:pydoc", "glue/sst2"]) == ("glue/sst2",)
    selection = select_tasks(["fidelity:builtin:pydoc", "glue/sst2"], compared=True)
    assert list(selection.tasks) == ["glue/sst2"] and selection.fidelity == "builtin:pydoc"
    assert find_task("fidelity:x.txt") == FidelityRows("x.txt")
