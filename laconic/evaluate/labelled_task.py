"""The base class of tasks that compare predictions with the labels in the rows of any data source."""

from dataclasses import dataclass
from typing import Self

from laconic.calibrate.batching import max_positions
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.labels import convert_labels
from laconic.evaluate.eval_task import EvalTask, source_of
from laconic.model import LanguageModel


@dataclass(frozen=True)
class LabelledTask(EvalTask):
    """A task whose name is `PREFIX:SOURCE`.

    Args:
        data: the data source.
    """

    data: str

    @classmethod
    def from_name(cls, name: str) -> Self:
        """The task `PREFIX:SOURCE`."""
        return cls(source_of(name))

    @property
    def name(self) -> str:
        return f"{self.prefix}:{self.data}"

    @property
    def source(self) -> str:
        return self.data

    def check_corpus(self, lm: LanguageModel, corpus: Corpus) -> None:
        convert_labels(lm, corpus)
        super().check_corpus(lm, corpus)


def context_of(lm: LanguageModel, most: int) -> int:
    """The largest number of tokens in a row: `most`, or the number of positions of the model if that is less."""
    return min(max_positions(lm) or most, most)
