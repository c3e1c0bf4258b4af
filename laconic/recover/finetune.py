"""Trains a compressed model on its own task, whatever it is made of: no teacher, the labels of the data."""

from collections.abc import Sequence
from dataclasses import dataclass

from laconic.errors import UserError
from laconic.model import LanguageModel, Task
from laconic.recover.distillation_loss import Terms
from laconic.recover.rows import Read
from laconic.recover.training import Training


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Train the model on its task: classes, scores, masked tokens, next tokens or targets."""

    name = "finetune"

    @property
    def prepares(self) -> bool:
        return True

    @property
    def needs_labels(self) -> bool:
        return True

    @property
    def compares_layers(self) -> bool:
        return False

    def taught_by(self, lm: LanguageModel) -> LanguageModel | None:
        return None

    def terms(
        self, lm: LanguageModel, teacher: LanguageModel | None, batch: Read, classes: Sequence[str] = ()
    ) -> Terms:
        return Terms(task=1.0)

    def check(self, lm: LanguageModel) -> None:
        super().check(lm)
        if lm.task is Task.EMBEDDING:
            raise UserError("A plain encoder has no task to be trained on; use 'distil', which needs no labels.")
