"""The task of a model, inferred from its class: it decides what is predicted, the loss, and the data that is read."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from inspect import Parameter, signature
from os import PathLike
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from laconic.errors import UserError, must_be
from laconic.numerics.distributions import BERNOULLI, CATEGORICAL, GAUSSIAN, Distribution
from laconic.numerics.moments import check_finite


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
        """The distribution whose parameters the model predicts."""
        if self is Task.MULTI_LABEL:
            return BERNOULLI
        return GAUSSIAN if self in (Task.REGRESSION, Task.EMBEDDING) else CATEGORICAL

    @property
    def is_sequence_classification(self) -> bool:
        """True for transformers' `…ForSequenceClassification`, whatever its problem type."""
        return self in (Task.CLASSIFICATION, Task.MULTI_LABEL, Task.REGRESSION)


PROBLEM_TYPES = {
    "single_label_classification": Task.CLASSIFICATION,
    "multi_label_classification": Task.MULTI_LABEL,
    "regression": Task.REGRESSION,
}
"""The task of a sequence classifier, by transformers' `problem_type`."""

# A class that appears in several has the first of these tasks.
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
"""The names of the classes in each of these mappings, by `model_type`."""
TEXT_ENCODERS = (auto.AutoModelForTextEncoding, auto.MODEL_FOR_TEXT_ENCODING_MAPPING)
"""Plain encoders of architectures whose `AutoModel` has a decoder too, as T5."""


VISION_LANGUAGE = (auto.AutoModelForImageTextToText, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
"""Models of images and text; those that are decoders and can read text alone are taken as causal models."""


def infer_task(model: PreTrainedModel) -> Task:
    """Infer the task of a model from its class and, for a sequence classifier, its configuration.

    Raises:
        UserError: it is no transformers model, or its class is not supported.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=16, num_labels=3)
        >>> infer_task(BertForSequenceClassification(config)).value
        'classification'
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
    """Check that an object is a transformers model, and return it.

    Args:
        model: any object.
        or_named: the error also suggests a folder or a hub name.

    Raises:
        UserError: it is none; the error names a transformers model inside of it, where there is one.
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
    """The task of a sequence classifier.

    transformers sets `problem_type` when it first sees labels; until then one output is a score, and several are
    classes.
    """
    count, problem, source = config.num_labels or 0, config.problem_type, config.name_or_path or "the model"
    if problem is not None and problem not in PROBLEM_TYPES:
        known = ", ".join(PROBLEM_TYPES)
        raise must_be(f"problem_type in the config.json of '{source}'", f"one of {known}, or left out", problem)
    if count < 1:
        raise UserError(f"The head of '{source}' has no output: num_labels in its config.json is {count}.")
    # A classifier of one class would always be right.
    single = Task.REGRESSION if count == 1 else Task.CLASSIFICATION
    return single if problem is None or PROBLEM_TYPES[problem] is Task.CLASSIFICATION else PROBLEM_TYPES[problem]


def find_auto_class(config: object, architectures: Iterable[str]) -> type:
    """Find the Auto class that loads a checkpoint.

    Args:
        config: its configuration.
        architectures: the names of the class that it was saved from; the first one counts. With none, the Auto class
            is `AutoModel`.

    Raises:
        UserError: the class is not supported, or belongs to another architecture than the configuration.
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
    """The name of the plain encoder class that sentence-transformers loads, whatever class was saved.

    Args:
        config: the configuration of the model.
        source: the model, as errors name it.

    Raises:
        UserError: the architecture has no plain encoder.
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
    """Each task with an Auto class and its mapping from configuration class to model class."""
    for task, (auto_class, mapping) in AUTO_CLASSES.items():
        yield task, auto_class, mapping
    yield Task.EMBEDDING, *TEXT_ENCODERS
    yield Task.CAUSAL, *VISION_LANGUAGE


def _reads_text(mapping: Any, config: Any) -> bool:
    """Whether the class of `mapping` for `config` can read text alone and predict its next token.

    Only a model of images and text may be unable to: it may be an encoder-decoder, or require images.
    """
    if mapping is not VISION_LANGUAGE[1]:
        return True
    parameters = signature(as_classes(mapping[type(config)])[0].forward).parameters
    needed = {
        name
        for name, parameter in parameters.items()
        if parameter.default is Parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }
    return not config.is_encoder_decoder and "input_ids" in parameters and needed <= {"self", "input_ids"}


def as_classes(entry: type | tuple[type, ...]) -> tuple[type, ...]:
    """The classes of an entry of transformers' model mappings, which has one or several."""
    return entry if isinstance(entry, tuple) else (entry,)


def check_weights(model: PreTrainedModel, source: str) -> None:
    """Raise UserError where a tensor of the model is NaN or infinite anywhere; the error names the first."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            check_finite(
                tensor, f"The model '{source}' has NaN or infinite values in '{name}'; use a sound checkpoint."
            )
