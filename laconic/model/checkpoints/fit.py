"""Whether a configuration can be built, and whether weights match it, by names and shapes alone."""

import copy
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError, must_be, quote, reason_of
from laconic.model.anatomy import find_entry
from laconic.model.checkpoints.report import check_report
from laconic.model.checkpoints.weights import Weights
from laconic.model.stock import MODEL_ERRORS, silence_transformers, text_config
from laconic.model.task import find_auto_class
from laconic.model.tokens import special_token_ids


def build_outline(config: PreTrainedConfig, source: str) -> PreTrainedModel:
    """Build the model that a configuration describes, on the meta device.

    Args:
        config: the configuration; `architectures` names the class.
        source: the model, as errors name it.

    Raises:
        UserError: the class cannot be built with it, or is not supported.
    """
    kind: Any = find_auto_class(config, config.architectures or ())
    check_layer_counts(config, f"In the config.json of '{source}', ")
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # Told below, in a sentence.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            outline: PreTrainedModel = kind.from_config(config, trust_remote_code=False)
    except MODEL_ERRORS as error:
        reason = _pad_beyond(config) or _unknown_value(config, error) or reason_of(error)
        raise UserError(
            f"The config.json of '{source}' describes no model that can be built: {reason}; take the one that was "
            "saved with the weights."
        ) from error
    _check_sizes(outline, source)
    return outline


def check_layer_counts(config: PreTrainedConfig, where: str) -> None:
    """Check that every number of layers is at least 1; classes build a model without blocks otherwise.

    Args:
        config: the configuration.
        where: the beginning of the error.

    Raises:
        UserError: a number is below 1.
    """
    entry = find_entry(config.model_type)
    for stack in () if entry is None else entry.stacks:
        layers = None if stack.depth is None else getattr(config, stack.depth.count, None)
        if stack.depth is not None and isinstance(layers, int) and layers < 1:
            name = config.attribute_map.get(stack.depth.count, stack.depth.count)
            raise must_be(f"{where}{name}", "at least 1", layers)


def _check_sizes(model: PreTrainedModel, source: str) -> None:
    """torch silently makes a layer without inputs or outputs; that is an error here."""
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Embedding, nn.Linear, Conv1D)):
            continue
        shape = tuple(module.get_parameter("weight").shape)
        # Of an embedding without rows, as of token types, a class may make no use.
        if 0 in (shape[-1:] if isinstance(module, nn.Embedding) else shape):
            raise UserError(
                f"The config.json of '{source}' describes no model that can be built: the weight of '{name}' would "
                f"have the shape {shape}; take the one that was saved with the weights."
            )


def _unknown_value(config: PreTrainedConfig, error: Exception) -> str:
    """The key whose value a class did not find in a table of its own, as the name of an activation."""
    wanted = error.args[0] if isinstance(error, LookupError) and error.args else None
    said = config.to_dict()
    parts = {"": said} | {f"{name}.": value for name, value in said.items() if isinstance(value, dict)}
    found = [f"{prefix}{name}" for prefix, part in parts.items() for name, value in part.items() if value == wanted]
    return f"{found[0]} is {quote(wanted)}, which its class does not know" if isinstance(wanted, str) and found else ""


def _pad_beyond(config: PreTrainedConfig) -> str:
    """What is wrong with the pad token, if anything: the error of torch does not name it."""
    known: object = getattr(text_config(config), "vocab_size", None)
    beyond = [
        token for token in special_token_ids(config, "pad_token_id") if isinstance(known, int) and token >= known >= 0
    ]
    return f"pad_token_id is {beyond[0]}, and vocab_size {known} ends before that" if beyond else ""


EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<number>\d+)\.(?P<part>.*)")
"""A tensor of one expert, in files of mixtures whose class stacks all experts of a layer in one tensor."""


def check_fit(weights: Weights, config: PreTrainedConfig, source: str, given: Collection[str] = ()) -> None:
    """Check that weights match a configuration: load them on the meta device, and check transformers' report.

    Args:
        weights: the files.
        config: the configuration.
        source: the model, as errors name it.
        given: names of tensors that come from elsewhere and may be missing.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    check_shapes(weights.shapes(), config, source, given, weights.whole_numbers)


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]],
    config: PreTrainedConfig,
    source: str,
    given: Collection[str] = (),
    whole_numbers: Callable[[], Collection[str]] = tuple,
) -> None:
    """Check that tensors match a configuration, by names and shapes.

    Args:
        shapes: the shape of each tensor, by name.
        config: the configuration.
        source: the model, as errors name it.
        given: names of tensors that come from elsewhere and may be missing.
        whole_numbers: gives the names of the tensors that hold integers or booleans.

    Raises:
        UserError: as `check_fit`.
    """
    _check_experts(shapes, source)
    kind: Any = type(build_outline(config, source))
    try:
        with silence_transformers():
            model, report = kind.from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except MODEL_ERRORS:
        # It may yet be loaded with its numbers; if not, that is told then.
        return
    with warnings.catch_warnings():
        # Notices are told when it is loaded.
        warnings.simplefilter("ignore")
        check_report(model, report, source, whole_numbers, given)


def _check_experts(shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Check that all experts of a layer have the same tensors; transformers would not say which lacks one."""
    layers: dict[tuple[str, str], dict[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if found := EXPERT.fullmatch(name):
            layers.setdefault((found["experts"], found["part"]), {})[int(found["number"])] = shape
    counts = {experts: 1 + max(max(layers[key]) for key in layers if key[0] == experts) for experts, _ in layers}
    for (experts, part), found in layers.items():
        for number in range(counts[experts]):
            name = f"{experts}.{number}.{part}"
            if number not in found:
                raise UserError(
                    f"The weights of '{source}' are incomplete: '{name}' is missing, which other experts of the layer "
                    "have; use a complete checkpoint."
                )
            usual = max(found.values(), key=list(found.values()).count)
            if found[number] != usual:
                raise UserError(
                    f"The weights of '{source}' do not fit together: '{name}' has the shape {found[number]}, and other "
                    f"experts of the layer {usual}; use files that were saved together."
                )
