"""The task of a model, inferred from its class. It determines the predictions, the loss and the format of the data."""

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


class ModelTask(StrEnum):
    """The kinds of predictions that laconic supports."""

    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi-label"
    REGRESSION = "regression"
    CAUSAL = "causal"
    MASKED = "masked"
    SEQ2SEQ = "seq2seq"
    EMBEDDING = "embedding"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"
    MULTIPLE_CHOICE = "multiple-choice"

    @property
    def distribution(self) -> Distribution:
        """The distribution whose parameters the model predicts."""
        if self is ModelTask.MULTI_LABEL:
            return BERNOULLI
        return GAUSSIAN if self in (ModelTask.REGRESSION, ModelTask.EMBEDDING) else CATEGORICAL

    @property
    def is_sequence_classification(self) -> bool:
        """True for transformers' `…ForSequenceClassification`, whatever its problem type."""
        return self in (ModelTask.CLASSIFICATION, ModelTask.MULTI_LABEL, ModelTask.REGRESSION)

    @property
    def has_class_names(self) -> bool:
        """True if `id2label` of the configuration names what the outputs mean; choices and answers have no names."""
        return self.is_sequence_classification or self is ModelTask.TOKEN_CLASSIFICATION

    @property
    def reads_labels(self) -> bool:
        """True if labels are read from the data; other tasks predict tokens of the text, or vectors."""
        return self.has_class_names or self in (ModelTask.QUESTION_ANSWERING, ModelTask.MULTIPLE_CHOICE)

    @property
    def predicts_once_per_row(self) -> bool:
        """True if each row has one prediction; other models have one for each of several tokens."""
        return self.is_sequence_classification or self in (ModelTask.MULTIPLE_CHOICE, ModelTask.EMBEDDING)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs of the model that its predictions are made from.

        Example:
            >>> ModelTask.QUESTION_ANSWERING.output_names
            ('start_logits', 'end_logits')
        """
        if self is ModelTask.QUESTION_ANSWERING:
            return ("start_logits", "end_logits")
        return ("last_hidden_state",) if self is ModelTask.EMBEDDING else ("logits",)


PROBLEM_TYPES = {
    "single_label_classification": ModelTask.CLASSIFICATION,
    "multi_label_classification": ModelTask.MULTI_LABEL,
    "regression": ModelTask.REGRESSION,
}
"""The task of a sequence classifier, by transformers' `problem_type`."""

# A class that appears in several mappings has the first of these tasks.
AUTO_CLASSES = {
    ModelTask.CLASSIFICATION: (auto.AutoModelForSequenceClassification, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    ModelTask.TOKEN_CLASSIFICATION: (
        auto.AutoModelForTokenClassification,
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    ),
    ModelTask.QUESTION_ANSWERING: (auto.AutoModelForQuestionAnswering, auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING),
    ModelTask.MULTIPLE_CHOICE: (auto.AutoModelForMultipleChoice, auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING),
    ModelTask.SEQ2SEQ: (auto.AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    ModelTask.CAUSAL: (auto.AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING),
    ModelTask.MASKED: (auto.AutoModelForMaskedLM, auto.MODEL_FOR_MASKED_LM_MAPPING),
    ModelTask.EMBEDDING: (auto.AutoModel, auto.MODEL_MAPPING),
}
TEXT_ENCODERS = (auto.AutoModelForTextEncoding, auto.MODEL_FOR_TEXT_ENCODING_MAPPING)
"""Plain encoders of architectures whose `AutoModel` has a decoder too, such as T5."""

VISION_LANGUAGE = (auto.AutoModelForImageTextToText, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
"""Models of images and text. Decoders that can read text without images are causal models."""

SUPPORTED = (
    "supported are models for sequence classification and regression, token classification, question answering and "
    "multiple choice, causal (of images too), masked and sequence-to-sequence language modelling, and plain encoders"
)


def infer_task(model: PreTrainedModel) -> ModelTask:
    """Infer the task of a model from its class and, for a sequence classifier, its configuration.

    Raises:
        UserError: it is not a model of transformers, or its class is not supported.

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
            return _classifier_task(model.config) if task is ModelTask.CLASSIFICATION else task
    raise UserError(f"The model class {type(model).__name__} is not supported; {SUPPORTED}.")


def check_pretrained(model: object, *, or_named: bool = True) -> PreTrainedModel:
    """Check that an object is a model of transformers, and return it.

    Args:
        model: any object.
        or_named: whether the error also suggests a folder or a hub name.

    Raises:
        UserError: it is not; the error names a model of transformers inside the object, if there is one.
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


def _classifier_task(config: PreTrainedConfig) -> ModelTask:
    """The task of a sequence classifier.

    transformers sets `problem_type` at the first forward pass with labels. Without it, one output is a score, and
    several outputs are classes.
    """
    count, problem, source = config.num_labels or 0, config.problem_type, config.name_or_path or "the model"
    if problem is not None and problem not in PROBLEM_TYPES:
        types = ", ".join(PROBLEM_TYPES)
        raise must_be(f"problem_type in the config.json of '{source}'", f"one of {types}, or left out", problem)
    if count < 1:
        raise UserError(f"The head of '{source}' has no output: num_labels in its config.json is {count}.")
    # A classifier with a single class would always be correct.
    single = ModelTask.REGRESSION if count == 1 else ModelTask.CLASSIFICATION
    return single if problem is None or PROBLEM_TYPES[problem] is ModelTask.CLASSIFICATION else PROBLEM_TYPES[problem]


def find_auto_class(config: object, architectures: Iterable[str]) -> type:
    """Find the Auto class that loads a checkpoint.

    Args:
        config: its configuration.
        architectures: names of classes; the first is the class that the checkpoint was saved from. Without a name, the
            Auto class is `AutoModel`.

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
    owners = [
        owner
        for _, mapping in AUTO_CLASSES.values()
        for owner, classes in mapping._model_mapping.items()
        if names[0] in ((classes,) if isinstance(classes, str) else classes)
    ]
    model_type = getattr(config, "model_type", None)
    if owners and model_type not in owners:
        raise UserError(
            f"The config.json contradicts itself: architectures names '{names[0]}', a class of '{owners[0]}', and "
            f"model_type is '{model_type}'; take the one that was saved with the weights."
        )
    raise UserError(f"The checkpoint was saved from the class '{names[0]}', which is not supported; {SUPPORTED}.")


def text_encoder_class_name(config: PreTrainedConfig, source: str) -> str:
    """The name of the plain encoder class that sentence-transformers loads, whichever class was saved.

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


def auto_classes() -> Iterator[tuple[ModelTask, type, Any]]:
    """Each task with an Auto class and its mapping from configuration class to model class."""
    for task, (auto_class, mapping) in AUTO_CLASSES.items():
        yield task, auto_class, mapping
    yield ModelTask.EMBEDDING, *TEXT_ENCODERS
    yield ModelTask.CAUSAL, *VISION_LANGUAGE


def reads_choices(model_class: type) -> bool:
    """Whether the inputs of a model class are (rows, choices, tokens)."""
    _, mapping = AUTO_CLASSES[ModelTask.MULTIPLE_CHOICE]
    return model_class.__name__ in mapping._model_mapping.values()


def _reads_text(mapping: Any, config: Any) -> bool:
    """Whether the class of `mapping` for `config` can read text without images and predict the next token.

    A model of images and text cannot if it is an encoder-decoder or requires images.
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
    """The classes of an entry in a model mapping of transformers, which may be one class or several."""
    return entry if isinstance(entry, tuple) else (entry,)
