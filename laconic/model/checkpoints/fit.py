"""Check that a configuration can be built, and that weights match it, by names and shapes.

transformers initializes missing parameters at random and ignores tensors without a place, with a warning. Here both are
errors, with these exceptions:

- names that the class itself lists (`_keys_to_ignore_on_load_missing`, `_keys_to_ignore_on_load_unexpected`), and
  tensors tied to one that is in the file;
- heads that the class does not have: a plain encoder may be loaded from a file with a language-modelling head, and a
  masked-language model from one with BERT's next-sentence head, a value head or layers that predict further tokens;
- a pooler, if the class has none, or if only a new head that is still to be trained reads it;
- tensors that are computed and not learned: buffers that the class no longer stores, masks and positions.
"""

import copy
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import CheckpointNotice, UserError, must_be, quote, reason_of
from laconic.model.anatomy import find_entry
from laconic.model.stock import MODEL_ERRORS, move_to_meta, silence_transformers, text_config
from laconic.model.task import find_auto_class
from laconic.model.tokens import special_token_ids

EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<number>\d+)\.(?P<part>.*)")
"""A tensor of one expert, in a file of a class that stacks all experts of a layer in one tensor."""
POOLER = "pooler."
OBSOLETE = re.compile(r"cls\.seq_relationship\.|(.*\.)?masked_bias$")
"""Tensors that no class reads: BERT's next-sentence head beside another head, and the value of masks in GPT-J."""


def build_outline(config: PreTrainedConfig, source: str) -> PreTrainedModel:
    """Build the model that a configuration describes, on the meta device.

    Args:
        config: the configuration; `architectures` names the class.
        source: the model, as errors name it.

    Raises:
        UserError: the class cannot be built with it, or is not supported.
    """
    auto_class: Any = find_auto_class(config, config.architectures or ())
    check_layer_counts(config, f"In the config.json of '{source}', ")
    problem = f"The config.json of '{source}' describes no model that can be built:"
    remedy = "take the one that was saved with the weights."
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # Tensors without elements raise an error below.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            outline = move_to_meta(auto_class.from_config(config, trust_remote_code=False))
    except MODEL_ERRORS as error:
        reason = _pad_beyond(config) or _unknown_value(config, error) or reason_of(error)
        raise UserError(f"{problem} {reason}; {remedy}") from error
    for name, module in outline.named_modules():
        if isinstance(module, (nn.Embedding, nn.Linear, Conv1D)):
            shape = tuple(module.get_parameter("weight").shape)
            # A class may never call an embedding without rows, such as that of token types.
            if 0 in (shape[-1:] if isinstance(module, nn.Embedding) else shape):
                raise UserError(f"{problem} the weight of '{name}' would have the shape {shape}; {remedy}")
    return outline


def check_layer_counts(config: PreTrainedConfig, place: str) -> None:
    """Check that every number of layers is at least 1; otherwise, classes build a model without blocks.

    Args:
        config: the configuration.
        place: the beginning of the error.

    Raises:
        UserError: a number is below 1.
    """
    entry = find_entry(config.model_type)
    for stack in () if entry is None else entry.stacks:
        count = None if stack.depth is None else getattr(config, stack.depth.count, None)
        if stack.depth is not None and isinstance(count, int) and count < 1:
            name = config.attribute_map.get(stack.depth.count, stack.depth.count)
            raise must_be(f"{place}{name}", "at least 1", count)


def _unknown_value(config: PreTrainedConfig, error: Exception) -> str:
    """A clause with the value that a class does not know, such as the name of an activation; "" for another error."""
    missing = error.args[0] if isinstance(error, LookupError) and error.args else None
    values = config.to_dict()
    parts = {"": values} | {f"{name}.": value for name, value in values.items() if isinstance(value, dict)}
    keys = [f"{prefix}{name}" for prefix, part in parts.items() for name, value in part.items() if value == missing]
    if isinstance(missing, str) and keys:
        return f"{keys[0]} is {quote(missing)}, which its class does not know"
    return ""


def _pad_beyond(config: PreTrainedConfig) -> str:
    """A clause about a pad token beyond the vocabulary, which the error of torch does not name; otherwise ""."""
    size: object = getattr(text_config(config), "vocab_size", None)
    for token in special_token_ids(config, "pad_token_id"):
        if isinstance(size, int) and token >= size >= 0:
            return f"pad_token_id is {token}, and vocab_size is only {size}"
    return ""


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]],
    config: PreTrainedConfig,
    source: str,
    external_names: Collection[str] = (),
    integer_names: Callable[[], Collection[str]] = tuple,
) -> None:
    """Check that stored tensors match a configuration, by names and shapes.

    They are loaded on the meta device, and the report of transformers is checked.

    Args:
        shapes: the shape of each tensor, by name.
        config: the configuration.
        source: the model, as errors name it.
        external_names: as in `check_report`.
        integer_names: as in `check_report`.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    _check_experts(shapes, source)
    model_class: Any = type(build_outline(config, source))
    try:
        with silence_transformers():
            model, report = model_class.from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except MODEL_ERRORS:
        # Some classes can be loaded only with their weights; others raise this error again at loading.
        return
    with warnings.catch_warnings():
        # Notices are given when the model is loaded.
        warnings.simplefilter("ignore")
        check_report(model, report, source, integer_names, external_names)


def _check_experts(shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Check that all experts of a layer have the same tensors; transformers does not name the one that differs."""
    layers: dict[tuple[str, str], dict[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := EXPERT.fullmatch(name):
            layers.setdefault((match["experts"], match["part"]), {})[int(match["number"])] = shape
    counts = {experts: 1 + max(max(layers[key]) for key in layers if key[0] == experts) for experts, _ in layers}
    for (experts, part), by_number in layers.items():
        for number in range(counts[experts]):
            name = f"{experts}.{number}.{part}"
            if number not in by_number:
                raise UserError(
                    f"The weights of '{source}' are incomplete: '{name}' is missing, which other experts of the layer "
                    "have; use a complete checkpoint."
                )
            usual = max(by_number.values(), key=list(by_number.values()).count)
            if by_number[number] != usual:
                raise UserError(
                    f"The weights of '{source}' do not fit together: '{name}' has the shape {by_number[number]}, and "
                    f"other experts of the layer {usual}; use files that were saved together."
                )


def check_report(
    model: PreTrainedModel,
    report: Mapping[str, Any],
    source: str,
    integer_names: Callable[[], Collection[str]] = tuple,
    external_names: Collection[str] = (),
) -> None:
    """Check the report of `from_pretrained(..., output_loading_info=True)`.

    A class other than the one that was saved (`config.architectures`) may have a head that the file does not have.

    Args:
        model: the loaded model.
        report: its `missing_keys`, `unexpected_keys` and `mismatched_keys`.
        source: the model, as errors name it.
        integer_names: returns the names of the tensors in the file that hold integers or booleans; called only for
            a model without quantization_config.
        external_names: names of tensors that come from elsewhere and may be missing.

    Raises:
        UserError: a tensor is missing, has another shape, has no place in the model, or holds codes of an unknown
            quantization.
    """
    for name, stored, expected in sorted(report["mismatched_keys"]):
        raise UserError(
            f"The weights of '{source}' do not fit its config.json: '{name}' has shape {tuple(stored)} in the file and "
            f"{tuple(expected)} in the model; use files that were saved together."
        )
    missing = sorted(
        name for name in report["missing_keys"] if not _may_be_missing(model, name) and name not in external_names
    )
    if missing:
        raise UserError(
            f"The weights of '{source}' are incomplete: {_count(missing, 'of its tensors')} missing, the first is "
            f"'{missing[0]}'; use a complete checkpoint."
        )
    unused = [name for name in report["unexpected_keys"] if not _may_be_unused(model, name)]
    # Integers are masks and positions; only in a compressed model they may be codes of weights.
    if model.config.to_dict().get("quantization_config") is None:
        integers = integer_names()
        unused = [name for name in unused if name not in integers]
        _check_codes(model, integers, source)
    # In the order of the numbers in their names: layer 2 comes before layer 10.
    unused.sort(key=lambda name: [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")])
    if unused:
        raise UserError(
            f"The weights of '{source}' do not fit its config.json: {_count(unused, 'of the tensors in the file')} not "
            f"in the model that it describes, the first is '{unused[0]}'; use the config.json that was saved with the "
            "weights."
        )
    _warn_of_heads(model, sorted(name for name in report["unexpected_keys"] if _is_head(model, name)), source)


def _check_codes(model: PreTrainedModel, integers: Collection[str], source: str) -> None:
    """Raise UserError if the file has whole numbers for a weight; transformers would take each for the weight."""
    codes = sorted(name for name, tensor in model.named_parameters() if name in integers and tensor.is_floating_point())
    if codes:
        raise UserError(
            f"The weights of '{source}' do not fit its config.json: '{codes[0]}' holds whole numbers in the file, "
            "and no quantization_config says what they stand for; use files that were saved together."
        )


def _warn_of_heads(model: PreTrainedModel, heads: Sequence[str], source: str) -> None:
    """Warn if tensors of a head are left out because config.json names no class."""
    if heads and not model.config.architectures:
        warnings.warn(
            f"The config.json of '{source}' names no class under architectures, so it is read as a "
            f"{type(model).__name__}, without {len(heads)} of the tensors in the file, the first is "
            f"'{heads[0]}'; name the class there to keep them.",
            CheckpointNotice,
            stacklevel=3,
        )


def _may_be_missing(model: PreTrainedModel, name: str) -> bool:
    # The patterns of a class are for the names in the class with a head.
    patterns = model._keys_to_ignore_on_load_missing or ()
    if any(re.search(pattern, f"{model.base_model_prefix}.{name}") for pattern in patterns):
        return True
    if model.base_model is model:
        return name.startswith(POOLER)
    # In a class other than the saved one, a head is new, and the pooler with it.
    inner = name.removeprefix(f"{model.base_model_prefix}.")
    is_saved_class = type(model).__name__ in (model.config.architectures or ())
    return not is_saved_class and (inner == name or inner.startswith(POOLER))


def _may_be_unused(model: PreTrainedModel, name: str) -> bool:
    inner = name.removeprefix(f"{model.base_model_prefix}.")
    is_pooler = inner.startswith(POOLER) and not _has(model.base_model, inner.partition(".")[0])
    is_computed = _is_computed(model, name) or _is_computed(model.base_model, inner)
    return _is_head(model, name) or is_pooler or is_computed or OBSOLETE.match(name) is not None


def _is_head(model: PreTrainedModel, name: str) -> bool:
    """Whether the tensor belongs to a part beside the base model that this class does not have."""
    first = name.partition(".")[0]
    is_inside = name.startswith(f"{model.base_model_prefix}.")
    return not is_inside and not _has(model.base_model, first) and not _has(model, first)


def _is_computed(model: nn.Module, name: str) -> bool:
    """Whether the tensor is a buffer that the class computes and does not store."""
    path, _, last = name.rpartition(".")
    module = dict(model.named_modules()).get(path)
    return module is not None and last in module._non_persistent_buffers_set


def _has(module: nn.Module, name: str) -> bool:
    # A part that this configuration leaves out is registered as None.
    registries = (module._modules, module._parameters, module._buffers)
    return any(registry.get(name) is not None for registry in registries)


def _count(names: list[str], whole: str) -> str:
    return f"{len(names)} {whole} {'is' if len(names) == 1 else 'are'}"
