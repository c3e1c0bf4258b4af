"""What a model predicts, decided once from its class: this fixes its predictions, its loss and its data."""

from collections.abc import Iterable
from enum import StrEnum

import torch
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from laconic.errors import UserError


class Task(StrEnum):
    """The kinds of prediction that laconic understands."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    CAUSAL = "causal"
    MASKED = "masked"
    SEQ2SEQ = "seq2seq"
    EMBEDDING = "embedding"

    @property
    def is_categorical(self) -> bool:
        """True where predictions are logits over classes or tokens, False where they are real vectors."""
        return self not in (Task.REGRESSION, Task.EMBEDDING)


# In the order of preference for a class that appears in several.
AUTO_CLASSES = {
    Task.CLASSIFICATION: (auto.AutoModelForSequenceClassification, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    Task.SEQ2SEQ: (auto.AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    Task.CAUSAL: (auto.AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING),
    Task.MASKED: (auto.AutoModelForMaskedLM, auto.MODEL_FOR_MASKED_LM_MAPPING),
    Task.EMBEDDING: (auto.AutoModel, auto.MODEL_MAPPING),
}


def task_of(model: PreTrainedModel) -> Task:
    """What `model` predicts.

    Raises:
        UserError: its class is none of those whose predictions laconic understands.
    """
    config = type(model.config)
    for task, (_, mapping) in AUTO_CLASSES.items():
        if config in mapping and isinstance(model, classes_of(mapping[config])):
            if task is Task.CLASSIFICATION and model.config.num_labels == 1:
                return Task.REGRESSION
            return task
    raise UserError(
        f"The model class {type(model).__name__} is not supported; supported are models for "
        "sequence classification and regression, causal, masked and sequence-to-sequence language modelling, "
        "and plain encoders."
    )


def auto_class_for(config: object, architectures: Iterable[str]) -> type:
    """The Auto class that loads the first of `architectures`; plain `AutoModel` when none is recorded.

    Raises:
        UserError: the checkpoint was saved from a class that laconic does not understand.
    """
    names = list(architectures)
    if not names:
        return auto.AutoModel
    for auto_class, mapping in AUTO_CLASSES.values():
        if type(config) in mapping and names[0] in {c.__name__ for c in classes_of(mapping[type(config)])}:
            return auto_class
    raise UserError(
        f"The checkpoint was saved from the class '{names[0]}', which is not supported; supported are models for "
        "sequence classification and regression, causal, masked and sequence-to-sequence language modelling, "
        "and plain encoders."
    )


def classes_of(entry: type | tuple[type, ...]) -> tuple[type, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def check_finite(model: PreTrainedModel, source: str) -> None:
    """Raise UserError naming the first tensor of `model` that holds a NaN or an infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"The model '{source}' has NaN or infinite values in '{name}'; use a sound checkpoint.")
