"""Change a configuration for a model that has lost layers, and check that its class can build that model.

The rules of `laconic.model.depth_rules` change what describes the kinds of layers. To find what no rule covers, both
models are built on the meta device before any work: each kept block in its old place is compared with the block that
the class builds from the new configuration in the new place (`laconic.model.stock`).
"""

import copy
from collections.abc import Collection, Mapping, Sequence

from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError, reason_of
from laconic.model.anatomy import Depth
from laconic.model.depth_rules import per_layer_values
from laconic.model.layers import Layers
from laconic.model.lm import LanguageModel
from laconic.model.stock import (
    MODEL_ERRORS,
    ModuleDifference,
    build_empty,
    build_stock,
    differences,
    modules_by_path,
    text_config,
)  # fmt: skip

LAYER_INDICES = ("layer_idx", "layer_id", "layer_number")
"""Attributes of modules with the index of their block."""
COUNTS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers")
"""Attributes of modules with the number of blocks."""
HAS_WINDOWS = "has_sliding_layers"
"""The attribute that is True if any block has a sliding window."""
SCALING = "scaling"
"""The attribute of an attention with the factor of its scores."""


def shorten_config(config: PreTrainedConfig, depth: Depth, count: int, kept: Sequence[int]) -> None:
    """Change `config` in place to describe only the `kept` ones of `count` layers, as far as the rules allow."""
    # With two stacks, only the entry of an architecture shows which stack a list is for.
    values = {} if config.is_encoder_decoder else per_layer_values(config, count, kept)
    for name in depth.lists:
        # A list that the class computes from other values has no attribute; the other values are changed.
        entries = vars(config).get(config.attribute_map.get(name, name))
        if isinstance(entries, list) and len(entries) == count:
            values[name] = [entries[index] for index in kept]
    if depth.repeated_list is not None:
        values[depth.repeated_list] = [[values[depth.lists[0]], 1]]
    for name, value in {**values, depth.count: len(kept)}.items():
        setattr(config, name, value)


def scales_by_index(lm: LanguageModel, layers: Layers) -> bool:
    """Whether an attention divides its scores by the index of its block."""
    return layers.depth.score_scale_flag is not None and bool(
        getattr(text_config(lm.model.config), layers.depth.score_scale_flag)
    )


def is_copied_list(
    attribute: str | None, value: object, before: Mapping[str, object], after: Mapping[str, object]
) -> bool:
    """Whether an attribute of a module is a copy of a list of the configuration, which must change with it.

    Args:
        attribute: its name.
        value: its value.
        before: the attributes of the configuration before the change.
        after: the attributes after the change.
    """
    return isinstance(value, list) and attribute in after and value == before.get(attribute or "")


class DropChecker:
    """Checks whether a configuration describes a model without some of its layers; results are cached.

    Args:
        lm: the model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._whole: PreTrainedModel | None = None
        self._kinds: dict[str, list[int]] = {}
        self._obstacles: dict[tuple[str, tuple[int, ...]], str | None] = {}

    def check(self, layers: Layers, indices: Collection[int]) -> None:
        """Raise UserError if the layers of these indices cannot be dropped."""
        obstacle = self._obstacle(layers, indices)
        if obstacle is not None:
            blocks = ", ".join(map(str, sorted(indices)))
            raise UserError(
                f"No configuration of '{self._lm.model.config.model_type}' describes the model without block {blocks}: "
                f"{obstacle}; drop other blocks."
            )

    def accepts(self, layers: Layers, indices: Collection[int]) -> bool:
        """Whether `check` accepts these layers."""
        return self._obstacle(layers, indices) is None

    def _obstacle(self, layers: Layers, indices: Collection[int]) -> str | None:
        kept = [index for index in range(len(layers)) if index not in indices]
        # Shared blocks do not depend on the index of their calls.
        if not kept or len(kept) == len(layers) or layers.shared:
            return None
        if self._whole is None:
            self._whole = build_stock(self._lm.model)
        if layers.name not in self._kinds:
            self._kinds[layers.name] = _kinds(self._whole, layers)
        key = layers.name, tuple(self._kinds[layers.name][index] for index in kept)
        if key not in self._obstacles:
            self._obstacles[key] = self._find_obstacle(self._whole, layers, kept)
        return self._obstacles[key]

    def _find_obstacle(self, whole: PreTrainedModel, layers: Layers, kept: Sequence[int]) -> str | None:
        config = copy.deepcopy(self._lm.model.config)
        text = text_config(config)
        try:
            shorten_config(text, layers.depth, len(layers), kept)
            shorter = build_empty(type(self._lm.model), config)
        except MODEL_ERRORS as error:
            return reason_of(error)
        if _counts_tokens(text_config(self._lm.model.config)) and not _counts_tokens(text):
            return "no attention would be left, and its class reads the number of earlier tokens from the cache of one"
        modules = _in_new_places(whole, layers, kept)
        before, after = vars(text_config(self._lm.model.config)), vars(text)
        holders = {path for path in modules if not path or layers.list.startswith(f"{path}.")}
        for difference in differences(modules, modules_by_path(shorter)):
            name, value = difference.attribute, difference.actual
            is_count = (name in COUNTS and value == len(layers)) or name == HAS_WINDOWS
            is_updated = name in LAYER_INDICES or is_copied_list(name, value, before, after)
            is_updated = is_updated or (is_count and difference.path in holders)
            # A tensor whose size is the number of layers keeps its size (ESM's contacts).
            is_updated = is_updated or (difference.is_shape and not difference.path.startswith(f"{layers.list}."))
            if not (is_updated or self._is_compensated(layers, difference)):
                return str(difference)
        return None

    def _is_compensated(self, layers: Layers, difference: ModuleDifference) -> bool:
        """Whether `drop_blocks` removes the difference: it moves T5's table to the first block, and scales GPT-2's
        queries."""
        if difference.attribute == SCALING and scales_by_index(self._lm, layers):
            return True
        table = layers.depth.bias_table
        if table is None:
            return False
        holder = f"{layers.list}.0.{table.module}"
        is_flag = difference.path == holder and difference.attribute == table.flag
        return is_flag or difference.path == f"{holder}.{table.table}"


def _counts_tokens(config: PreTrainedConfig) -> bool:
    """Whether the cache of a model knows the number of earlier tokens; that of state spaces alone does not."""
    try:
        DynamicCache(config=config).get_seq_length()
    except MODEL_ERRORS:
        return False
    return True


def _in_new_places(whole: PreTrainedModel, layers: Layers, kept: Sequence[int]) -> dict[str, nn.Module]:
    """The modules of `whole` without the dropped layers, by their new paths."""
    new_paths = {f"{layers.list}.{old}": f"{layers.list}.{new}" for new, old in enumerate(kept)}
    dropped = {f"{layers.list}.{old}" for old in range(len(layers))} - new_paths.keys()
    levels = layers.list.count(".") + 2
    modules: dict[str, nn.Module] = {}
    for path, module in modules_by_path(whole).items():
        block = ".".join(path.split(".")[:levels])
        if block not in dropped:
            modules[new_paths.get(block, block) + path[len(block) :]] = module
    return modules


def _kinds(whole: PreTrainedModel, layers: Layers) -> list[int]:
    """A number for each layer; it is equal for layers that differ only in their index."""
    kinds: list[Mapping[str, nn.Module]] = []
    numbers = []
    for path in layers.paths:
        block = modules_by_path(whole.get_submodule(path))
        for number, other in enumerate(kinds):
            if all(difference.attribute in LAYER_INDICES for difference in differences(block, other)):
                numbers.append(number)
                break
        else:
            numbers.append(len(kinds))
            kinds.append(block)
    return numbers
