"""Initial weights of a student: random weights, and weights copied from the model that it replaces."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError, must_be, reason_of, unknown
from laconic.model import LanguageModel, ModelTask
from laconic.model.layers import find_layers
from laconic.model.stock import MODEL_ERRORS
from laconic.model.task import AUTO_CLASSES, as_classes
from laconic.model.tokens import special_token_ids

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
BlockNumbers = tuple[int, ...] | Mapping[str, tuple[int, ...]]
HEADS = {
    ModelTask.CLASSIFICATION: "classifies texts",
    ModelTask.TOKEN_CLASSIFICATION: "classifies tokens",
    ModelTask.QUESTION_ANSWERING: "answers questions",
    ModelTask.MULTIPLE_CHOICE: "chooses one of several texts",
}
"""The tasks of new heads, each as a verb for messages."""


def check_head(head: str | None, classes: object) -> None:
    """Check that a new head has classes exactly if its task has some.

    Args:
        head: the task of the new head; None if it is not named.
        classes: its classes; None if there are none.

    Raises:
        UserError: it has no classes, or has some and its task has none.
    """
    if head in (ModelTask.QUESTION_ANSWERING, ModelTask.MULTIPLE_CHOICE) and classes is not None:
        raise must_be("classes", f"left out with the head {head}, which has none", classes)
    if head in (ModelTask.CLASSIFICATION, ModelTask.TOKEN_CLASSIFICATION) and classes is None:
        raise must_be("classes", f"given with the head {head}: their number or their names", classes)


def new_head_task(head: str | None, task: ModelTask) -> ModelTask:
    """Return the task of a new head: the one that is named, else token classification if the model has this task."""
    if head is not None:
        return ModelTask(head)
    return task if task is ModelTask.TOKEN_CLASSIFICATION else ModelTask.CLASSIFICATION


def set_classes(config: PreTrainedConfig, names: Sequence[str], problem_type: ProblemType | None = None) -> None:
    """Give a configuration the classes of a new head, in place.

    Args:
        config: the configuration.
        names: names of the classes; a single one makes the head a regression unless `problem_type` says otherwise.
        problem_type: `problem_type` of the configuration; None for a single-label classification.
    """
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = problem_type or ("regression" if len(names) == 1 else None)
    ends = special_token_ids(config, "eos_token_id")
    if ends and not special_token_ids(config, "pad_token_id"):
        # A decoder classifier finds the last token of a row by the pad token.
        config.pad_token_id = ends[0]


def set_head(
    config: PreTrainedConfig, task: ModelTask, names: Sequence[str], problem_type: ProblemType | None
) -> type[PreTrainedModel]:
    """Give a configuration a new head, in place, and return the class that has this head.

    Args:
        config: the configuration.
        task: the task of the head, one of `HEADS`.
        names: names of its classes; empty for a task without classes.
        problem_type: `problem_type` of the configuration, for the classification of texts.

    Raises:
        UserError: the architecture has no class with such a head.
    """
    _, mapping = AUTO_CLASSES[task]
    if type(config) not in mapping:
        raise UserError(f"Models of the type '{config.model_type}' have no class that {HEADS[task]}.")
    if names:
        set_classes(config, names, problem_type)
    elif task is ModelTask.QUESTION_ANSWERING:
        config.num_labels = len(task.output_names)
    if task is not ModelTask.CLASSIFICATION:
        config.problem_type = None
    return as_classes(mapping[type(config)])[0]


def random_model(config: PreTrainedConfig, kind: Any, device: torch.device, seed: int) -> PreTrainedModel:
    """Make a model with random weights in fp32 from a configuration.

    Args:
        config: the configuration.
        kind: the class of the model, or an auto class.
        device: device of the model. Weights are drawn on the CPU, so that they are the same for every device.
        seed: seed of the weights.

    Raises:
        UserError: the class rejects the configuration.
    """
    init_device = device if device.type == "meta" else torch.device("cpu")
    with torch.random.fork_rng(), init_device:
        torch.manual_seed(seed)
        try:
            model = kind.from_config(config) if not issubclass(kind, PreTrainedModel) else kind(config)
        except MODEL_ERRORS as error:
            raise UserError(
                f"No model can be built with this configuration: {reason_of(error)}; correct it."
            ) from error
    torch.nn.Module.to(model, device, torch.float32)
    return model


@torch.no_grad()
def copy_weights(source: LanguageModel, target: LanguageModel, *, blocks: bool, outside: bool, head: bool) -> None:
    """Copy weights from one model to another, in place.

    Args:
        source: the model to copy from.
        target: the model to copy to.
        blocks: copy the weights inside the blocks.
        outside: copy the weights outside the blocks (embeddings, norms, head) that have equal shapes.
        head: with `outside`, copy the head too.

    Raises:
        UserError: a weight inside the blocks of `target` is missing in `source` or has another shape there.
    """
    inside = tuple(f"{layers.list}." for layers in find_layers(target))
    encoder = _prefix(target.model)
    numbers: Mapping[str, torch.Tensor] = source.model.state_dict()
    for name, tensor in target.model.state_dict().items():
        is_inside = name.startswith(inside)
        if not (blocks if is_inside else outside and (head or name.startswith(encoder))):
            continue
        theirs = numbers.get(corresponding_name(source.model, name, target.model))
        if theirs is not None and theirs.shape == tensor.shape:
            tensor.copy_(theirs)
        elif is_inside:
            shape = "missing" if theirs is None else f"of the shape {tuple(theirs.shape)}"
            raise UserError(
                f"The blocks of '{source.source}' are not those of its configuration: '{name}' would be of the shape "
                f"{tuple(tensor.shape)} and is {shape}; put 'student' before the step that removes parts of blocks."
            )


def corresponding_name(model: PreTrainedModel, name: str, other: PreTrainedModel) -> str:
    """Translate the name of a tensor between two models with different heads, such as `bert.x` and `x`.

    Args:
        model: the model to return the name for.
        name: name of the tensor in `other`.
        other: the other model.
    """
    prefix = _prefix(other)
    return _prefix(model) + name.removeprefix(prefix) if name.startswith(prefix) else name


def _prefix(model: PreTrainedModel) -> str:
    """The prefix of the base model's tensors, such as `bert.`; empty if the model has no head."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def dropped_blocks(lm: LanguageModel, kept: BlockNumbers) -> tuple[int | str, ...] | dict[str, tuple[int | str, ...]]:
    """Return the blocks that a student lacks.

    Args:
        lm: the model.
        kept: numbers of the blocks that it has, in order; for several stacks by the name of the stack.

    Raises:
        UserError: there is no such stack or block, or the blocks are not in order.
    """
    counts = {layers.name: len(layers) for layers in find_layers(lm)}
    blocks = kept if isinstance(kept, Mapping) else dict.fromkeys(counts, kept)
    for stack, numbers in blocks.items():
        if stack not in counts:
            raise unknown("stack", stack, counts)
        if not numbers or list(numbers) != sorted(set(numbers)) or numbers[-1] >= counts[stack]:
            raise must_be("blocks", f"some of 0 to {counts[stack] - 1}, each once and in order", list(numbers))
    others: dict[str, tuple[int | str, ...]] = {
        stack: tuple(n for n in range(counts[stack]) if n not in numbers) for stack, numbers in blocks.items()
    }
    return others if len(counts) > 1 else next(iter(others.values()))
