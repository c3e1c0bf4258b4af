"""What a model predicts, decided once from its class: this fixes its predictions, its loss and its data."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from inspect import Parameter, signature
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from laconic.errors import UserError, must_be
from laconic.numerics.distributions import BERNOULLI, CATEGORICAL, GAUSSIAN, Distribution


class Task(StrEnum):
    """The kinds of prediction that laconic understands."""

    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi-label"
    REGRESSION = "regression"
    CAUSAL = "causal"
    MASKED = "masked"
    SEQ2SEQ = "seq2seq"
    EMBEDDING = "embedding"

    @property
    def distribution(self) -> Distribution:
        """What the values mean that are predicted."""
        if self is Task.MULTI_LABEL:
            return BERNOULLI
        return GAUSSIAN if self in (Task.REGRESSION, Task.EMBEDDING) else CATEGORICAL

    @property
    def is_sequence_classification(self) -> bool:
        """True for transformers' `…ForSequenceClassification` of every problem type: a head judges whole texts."""
        return self in (Task.CLASSIFICATION, Task.MULTI_LABEL, Task.REGRESSION)


PROBLEM_TYPES = {
    "single_label_classification": Task.CLASSIFICATION,
    "multi_label_classification": Task.MULTI_LABEL,
    "regression": Task.REGRESSION,
}
"""What a head for texts predicts, by transformers' `problem_type`."""

# In the order of preference for a class that appears in several.
AUTO_CLASSES = {
    Task.CLASSIFICATION: (auto.AutoModelForSequenceClassification, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    Task.SEQ2SEQ: (auto.AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    Task.CAUSAL: (auto.AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING),
    Task.MASKED: (auto.AutoModelForMaskedLM, auto.MODEL_FOR_MASKED_LM_MAPPING),
    Task.EMBEDDING: (auto.AutoModel, auto.MODEL_MAPPING),
}
NAMES: tuple[Any, ...] = (
    auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    auto.MODEL_MAPPING_NAMES,
)
"""The classes of the same by `model_type`: a name, or several."""
TEXT_ENCODERS = (auto.AutoModelForTextEncoding, auto.MODEL_FOR_TEXT_ENCODING_MAPPING)
"""For plain encoders whose like among the above have a decoder too, as T5's."""


VISION_LANGUAGE = (auto.AutoModelForImageTextToText, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
"""For models that read images too and write text, as far as they are decoders that read text alone as well."""


def infer_task(model: PreTrainedModel) -> Task:
    """What `model` predicts.

    Raises:
        UserError: it is no model of transformers, or its class is none of those whose predictions laconic understands.
    """
    check_pretrained(model)
    config = type(model.config)
    for task, _, mapping in auto_classes():
        if config in mapping and isinstance(model, as_classes(mapping[config])) and _reads_text(mapping, model.config):
            return _of_head(model.config) if task is Task.CLASSIFICATION else task
    raise UserError(
        f"The model class {type(model).__name__} is not supported; supported are models for "
        "sequence classification and regression, causal (of images too), masked and sequence-to-sequence language "
        "modelling, and plain encoders."
    )


def check_pretrained(model: object, *, or_named: bool = True) -> PreTrainedModel:
    """`model`, once it is known to be a model of transformers.

    or_named: whether its name would have done too.

    Raises:
        UserError: it is none; the sentence names one that is inside of it.
    """
    if isinstance(model, PreTrainedModel):
        return model
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    inside = next(((path, part) for path, part in parts if isinstance(part, PreTrainedModel)), None)
    if isinstance(model, (str, PathLike)):
        remedy = "; give what from_pretrained returns for it"
    elif inside is None:
        remedy = ""
    elif type(model).__module__.partition(".")[0] == "peft":
        remedy = "; give what its merge_and_unload() returns"
    else:
        path, part = inside
        remedy = f"; give the {type(part).__name__} inside of it, which is its get_submodule('{path}')"
    kinds = "a loaded model of transformers" + (", a folder or a hub name" if or_named else "")
    raise UserError(f"model must be {kinds}; got an object of the class {type(model).__name__}{remedy}.")


def _of_head(config: PreTrainedConfig) -> Task:
    """What a head for texts predicts. transformers writes `problem_type` down when it first sees labels; before that it
    takes one output for a score, and several for classes."""
    count, problem, source = config.num_labels or 0, config.problem_type, config.name_or_path or "the model"
    if problem is not None and problem not in PROBLEM_TYPES:
        known = ", ".join(PROBLEM_TYPES)
        raise must_be(f"problem_type in the config.json of '{source}'", f"one of {known}, or left out", problem)
    if count < 1:
        raise UserError(f"The head of '{source}' has no output: num_labels in its config.json is {count}.")
    # One class alone would be a prediction that is always right.
    single = Task.REGRESSION if count == 1 else Task.CLASSIFICATION
    return single if problem is None or PROBLEM_TYPES[problem] is Task.CLASSIFICATION else PROBLEM_TYPES[problem]


def find_auto_class(config: object, architectures: Iterable[str]) -> type:
    """The Auto class that loads the first of `architectures`; plain `AutoModel` when none is recorded.

    Raises:
        UserError: the checkpoint was saved from a class that laconic does not understand, or of another architecture.
    """
    names = list(architectures)
    if not names:
        return auto.AutoModel
    for _, auto_class, mapping in auto_classes():
        if type(config) not in mapping or not _reads_text(mapping, config):
            continue
        if names[0] in {c.__name__ for c in as_classes(mapping[type(config)])}:
            return auto_class
    known = ((kind, (held,) if isinstance(held, str) else held) for table in NAMES for kind, held in table.items())
    owners = [kind for kind, held in known if names[0] in held]
    own = getattr(config, "model_type", None)
    if owners and own not in owners:
        raise UserError(
            f"The config.json contradicts itself: architectures names '{names[0]}', a class of '{owners[0]}', and "
            f"model_type is '{own}'; take the one that was saved with the weights."
        )
    raise UserError(
        f"The checkpoint was saved from the class '{names[0]}', which is not supported; supported are models for "
        "sequence classification and regression, causal (of images too), masked and sequence-to-sequence language "
        "modelling, and plain encoders."
    )


def text_encoder_class_name(config: PreTrainedConfig, source: str) -> str:
    """The name of the class that sentence-transformers makes vectors by, whatever class the checkpoint was saved from.

    Raises:
        UserError: it would be an encoder-decoder.
    """
    _, encoders = TEXT_ENCODERS
    mapping: Any = encoders if type(config) in encoders else auto.MODEL_MAPPING
    if type(config) not in mapping or (mapping is not encoders and config.is_encoder_decoder):
        raise UserError(
            f"The model '{source}' makes vectors by the architecture '{config.model_type}', which has no plain "
            "encoder; use one whose transformer is an encoder or a decoder."
        )
    return as_classes(mapping[type(config)])[0].__name__


def auto_classes() -> Iterator[tuple[Task, type, Any]]:
    """Each task with an Auto class of its models, and which those are."""
    for task, (auto_class, mapping) in AUTO_CLASSES.items():
        yield task, auto_class, mapping
    yield Task.EMBEDDING, *TEXT_ENCODERS
    yield Task.CAUSAL, *VISION_LANGUAGE


def _reads_text(mapping: Any, config: Any) -> bool:
    """Whether the classes of `mapping` for `config` read text alone, and predict its next token.

    Only those that are made for images might not: they may have an encoder for these, or not do without them.
    """
    if mapping is not VISION_LANGUAGE[1]:
        return True
    asked = signature(as_classes(mapping[type(config)])[0].forward).parameters
    needed = {name for name, one in asked.items() if one.default is Parameter.empty and one.kind is not one.VAR_KEYWORD}
    return not config.is_encoder_decoder and "input_ids" in asked and needed <= {"self", "input_ids"}


def as_classes(entry: type | tuple[type, ...]) -> tuple[type, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def check_finite(model: PreTrainedModel, source: str) -> None:
    """Raise UserError naming the first tensor of `model` that holds a NaN or an infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"The model '{source}' has NaN or infinite values in '{name}'; use a sound checkpoint.")
