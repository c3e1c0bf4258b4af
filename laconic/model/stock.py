"""Build a model from its configuration without weights, and compare another model with it.

A checkpoint consists of tensors and a configuration. All other properties of a module (its class, a flag such as
`is_sliding`, the scale of a residual) are computed by the class when the checkpoint is loaded. So a model can be saved
only if its class builds the same modules from the configuration.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import BigBirdModel, BigBirdPegasusModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from laconic.formats import ExpertStack, Format

AT_RUN_TIME = re.compile(r"_|training$|gradient_checkpointing$|max_seq_len_cached$|name_or_path$|.*drop")
"""Attributes that are private, that training or a forward pass changes, or that matter only in training."""
MODEL_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError,
    StrictDataclassError, re.error,
)  # fmt: skip
"""Exceptions of transformers' classes, and of the libraries that they call, for a model that cannot be built, loaded or
run. Their documentation does not list these exceptions."""
_PLAIN = (bool, int, float, str, type(None))


class Shape(NamedTuple):
    """The shape of a tensor, and whether it is floating point."""

    sizes: tuple[int, ...]
    is_real: bool

    def __str__(self) -> str:
        return f"of the shape {self.sizes}" if self.is_real else f"of whole numbers and the shape {self.sizes}"


class ModuleDifference(NamedTuple):
    """A difference between a module and what its class would build.

    Args:
        path: the path of the module.
        attribute: the attribute that differs; None for the module itself.
        actual: the present value; None for a module that is missing.
        expected: the value that the class would build.
    """

    path: str
    attribute: str | None
    actual: object
    expected: object

    @property
    def is_shape(self) -> bool:
        """Whether the shape of a tensor differs, or an attribute that follows from it."""
        return isinstance(self.actual, Shape) or self.attribute in ("in_features", "out_features")

    def __str__(self) -> str:
        """The difference as a clause: "'model.layers.0.mlp' would be a LlamaMLP in place of an …"."""
        if self.attribute is not None:
            expected, actual = _format_value(self.expected), _format_value(self.actual)
            return f"'{self.path}' would have {self.attribute} {expected} in place of {actual}"
        if self.expected is None:
            return f"'{self.path}' would be missing"
        if self.actual is None:
            return f"'{self.path}' would exist, and does not exist now"
        return f"'{self.path}' would be of the class {self.expected} in place of {self.actual}"


def build_stock(model: PreTrainedModel) -> PreTrainedModel:
    """Build the model that the class of `model` builds from its configuration, on the meta device."""
    return build_empty(type(model), model.config)


def build_empty(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model on the meta device from its configuration, as it is after saving and loading.

    Args:
        kind: the class.
        config: its configuration.

    Raises:
        MODEL_ERRORS: the configuration contradicts itself.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> build_empty(GPT2Model, GPT2Config(n_layer=1, n_embd=8, n_head=2)).wte.weight.is_meta
        True
    """
    with TemporaryDirectory() as folder:
        # Some values change when they are saved, such as infinity.
        config.to_json_file(f"{folder}/config.json")
        loaded = type(config).from_json_file(f"{folder}/config.json")
    vars(loaded).pop("quantization_config", None)
    # This choice is not saved; it selects one of several equivalent classes.
    loaded._attn_implementation = config._attn_implementation
    with torch.device("meta"):
        return move_to_meta(kind(loaded))


def move_to_meta(model: PreTrainedModel) -> PreTrainedModel:
    """Move the parameters that a class made on the CPU in spite of `torch.device("meta")`, and return the model.

    `torch.FloatTensor(sizes)`, with which XLNet makes its projections, ignores the default device.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                module.register_parameter(name, nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad))
    return model


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of `model` by path; a module in several places appears at each of them."""
    return dict(model.named_modules(remove_duplicate=False))


def differences(actual: Mapping[str, nn.Module], expected: Mapping[str, nn.Module]) -> Iterator[ModuleDifference]:
    """Compare two sets of modules by path, outermost first.

    Shapes are compared, and whether a tensor is floating point; values of tensors are not.

    Args:
        actual: the modules of a model.
        expected: the modules that its class would build.

    Yields:
        Each difference.
    """
    for path, module in actual.items():
        other = expected.get(path)
        if other is None:
            yield ModuleDifference(path, None, type(module).__name__, None)
        elif type(module) is not type(other):
            yield ModuleDifference(path, None, type(module).__name__, type(other).__name__)
        else:
            yield from _module_differences(path, module, other)
    for path, other in expected.items():
        if path not in actual:
            yield ModuleDifference(path, None, None, type(other).__name__)


SWITCHING_TYPES = ("big_bird", "bigbird_pegasus")
"""Architectures that select another attention for short rows."""


def copy_attention_type(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Give `plain` the attention type that a forward pass of `model` selected, as BigBird does for short rows."""
    for path, part in model.named_modules():
        if isinstance(part, (BigBirdModel, BigBirdPegasusModel)):
            holder = part if isinstance(part, BigBirdModel) else part.encoder
            other = plain.get_submodule(path)
            target: Any = other if isinstance(other, BigBirdModel) else other.get_submodule("encoder")
            target.set_attention_type(holder.attention_type)


def reset_attention_type(model: PreTrainedModel) -> None:
    """Make a BigBird attend as its configuration says.

    A row that is short switches it to full attention for every later pass. Without a reset, the outputs for a text
    depend on the texts before it.
    """
    if model.config.model_type in SWITCHING_TYPES:
        for part in model.modules():
            if isinstance(part, BigBirdModel):
                part.set_attention_type(part.config.attention_type)
            elif isinstance(part, BigBirdPegasusModel):
                part.encoder.set_attention_type(part.config.attention_type)


def _module_differences(path: str, module: nn.Module, other: nn.Module) -> Iterator[ModuleDifference]:
    stores_nothing = not any(True for _ in module.parameters()) and not module.state_dict()
    if isinstance(module, (Format, ExpertStack)):
        values, others = module.spec(), other.spec() if isinstance(other, (Format, ExpertStack)) else {}
    else:
        values, others = _attributes(module), _attributes(other)
    for name in values.keys() & others.keys():
        if not _same(values[name], others[name], or_fewer=stores_nothing):
            yield ModuleDifference(path, name, values[name], others[name])
    shapes, other_shapes = _tensors(module), _tensors(other)
    for name in sorted(shapes.keys() | other_shapes.keys()):
        actual, expected = shapes.get(name), other_shapes.get(name)
        # A module may have more computed tables than it needs, such as one for a kind of layer that was dropped.
        if actual != expected and not (stores_nothing and expected is None):
            yield ModuleDifference(path, name, actual, expected)


def _attributes(module: nn.Module) -> dict[str, Any]:
    # The attributes of an embedding are its size, which its tensor has too, and settings of training.
    if isinstance(module, nn.Embedding):
        return {}
    return {name: value for name, value in vars(module).items() if not AT_RUN_TIME.match(name) and _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _same(actual: object, expected: object, or_fewer: bool) -> bool:
    if isinstance(actual, (list, tuple)) and isinstance(expected, (list, tuple)):
        return list(actual) == list(expected) or (or_fewer and set(expected) <= set(actual))
    if isinstance(actual, float) and isinstance(expected, float):
        return math.isclose(actual, expected, rel_tol=1e-9) or (math.isnan(actual) and math.isnan(expected))
    return actual == expected


def _tensors(module: nn.Module) -> dict[str, Shape]:
    """The parameters and buffers of the module itself, without its children."""
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name: Shape(tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in own}


def _format_value(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


@contextmanager
def silence_transformers() -> Iterator[None]:
    """A context in which transformers shows no progress bars and no warnings."""
    shows_bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bars:
            logging.enable_progress_bar()


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The text part of a configuration; the whole configuration if it has no such part, or several."""
    try:
        return config.get_text_config()
    except ValueError:
        return config
