"""Change a configuration for a model that has lost layers, and check that its class can build that model.

Configurations describe the kinds of layers in several ways: a list with an entry per layer, the indices of some layers,
the number of first layers of a kind, or a period. Each way is a rule here. To find what no rule covers, both models are
built on the meta device before any work: each kept block in its old place is compared with the block that the class
builds from the new configuration in the new place (`laconic.model.stock`).
"""

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError, reason_of
from laconic.model.anatomy import Depth
from laconic.model.layers import Layers
from laconic.model.lm import LanguageModel
from laconic.model.stock import MODEL_ERRORS, ModuleDifference, build_empty, build_stock, differences, modules_by_path

Values = Mapping[str, Any]
"""Values of a configuration by key. A rule takes them with the number of layers and the kept layers."""

_BY_LAYER = re.compile(
    r"(?!mtp_)(.*_)?layers?(_.*)?$|.*_pattern$|indexer_types$|kv_sharing_modes$|attention_window$"
    r"|intermediate_size$|num_experts$|num_shared_expert$|moe_topk$"
)
"""Keys of lists with an entry for each layer, if they have that length. In some configurations they are one number."""
_INDEX_LISTS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices")
"""Keys of lists of layer indices."""
_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
"""Keys of numbers of first layers of one kind."""
_LAST = ("num_kv_shared_layers",)
"""Keys of numbers of last layers of one kind."""
_PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
"""Keys of a period and an offset: the layers whose index has the remainder `offset` modulo `period`."""


def per_layer_values(config: PreTrainedConfig, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """The values of a configuration, except the number of layers, that change when layers are dropped, by key.

    Args:
        config: the configuration of the whole model.
        count: its number of layers.
        kept: the layers that stay.

    Example:
        >>> from transformers import LlamaConfig
        >>> per_layer_values(LlamaConfig(max_window_layers=2), 3, [0, 2])
        {'max_window_layers': 1}
    """
    values = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    return {name: value for rule in _RULES for name, value in rule(values, count, kept).items()}


def _shorten_lists(values: Values, count: int, kept: Sequence[int]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if name in _INDEX_LISTS or not _BY_LAYER.match(name):
            continue
        if isinstance(value, (list, tuple)) and len(value) == count:
            changed[name] = [value[index] for index in kept]
        elif isinstance(value, str) and name.endswith("_pattern") and len(value) == count:
            changed[name] = "".join(value[index] for index in kept)
    return changed


def _expand_period(values: Values, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """The list of RecurrentGemma is one period of layers, which repeats over all layers."""
    period = values.get("block_types")
    if not isinstance(period, (list, tuple)) or not period:
        return {}
    return {"block_types": [period[index % len(period)] for index in kept]}


def _renumber_layers(values: Values, count: int, kept: Sequence[int]) -> dict[str, Any]:
    return {
        name: [kept.index(number) for number in values[name] if number in kept]
        for name in _INDEX_LISTS
        if isinstance(values.get(name), (list, tuple))
    }


def _recount_ends(values: Values, count: int, kept: Sequence[int]) -> dict[str, Any]:
    # A number above the number of layers means all layers.
    first = {name: number for name in _FIRST if isinstance(number := values.get(name), int) and number < count}
    last = {name: number for name in _LAST if isinstance(number := values.get(name), int)}
    counted = {name: sum(index < number for index in kept) for name, number in first.items()}
    return counted | {name: sum(index >= count - number for index in kept) for name, number in last.items()}


def _list_expert_steps(values: Values, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """Qwen has experts in every n-th layer that is not listed as dense."""
    step, dense = values.get("decoder_sparse_step"), values.get("mlp_only_layers")
    if not isinstance(step, int) or not isinstance(dense, (list, tuple)) or step == 1:
        return {}
    are_dense = [new for new, old in enumerate(kept) if old in dense or (old + 1) % step != 0]
    return {"decoder_sparse_step": 1, "mlp_only_layers": are_dense}


def _fit_expert_interval(values: Values, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """ERNIE has experts in every n-th layer from one index to another."""
    start, end, step = (values.get(f"moe_layer_{name}") for name in ("start_index", "end_index", "interval"))
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(step, int)):
        return {}
    experts = [new for new, old in enumerate(kept) if start <= old <= end and (old + 1) % step == 0]
    if not experts:
        return {"moe_layer_start_index": len(kept), "moe_layer_end_index": len(kept)}
    steps = {after - before for before, after in pairwise(experts)} or {experts[0] + 1}
    step = min(steps)
    if len(steps) > 1 or (experts[0] + 1) % step:
        return {}
    return {"moe_layer_start_index": experts[0], "moe_layer_end_index": experts[-1], "moe_layer_interval": step}


def _fit_periods(values: Values, count: int, kept: Sequence[int]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for names in _PERIODS:
        period, offset = (values.get(name) for name in names)
        if isinstance(period, int) and isinstance(offset, int):
            matching = [new for new, old in enumerate(kept) if old % period == offset]
            changed |= dict(zip(names, _find_period(matching, len(kept)) or (), strict=False))
    return changed


def _find_period(indices: list[int], count: int) -> tuple[int, int] | None:
    """The (period, offset) for exactly these indices below `count`; None if they are not periodic."""
    if not indices:
        return count + 1, count
    first, period = indices[0], indices[1] - indices[0] if len(indices) > 1 else count
    return (period, first) if first < period and indices == list(range(first, count, period)) else None


def _rescale_depth(values: Values, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """MiniCPM divides the output of a layer by the square root of the number of layers; the quotient is kept."""
    scale = values.get("scale_depth")
    return {"scale_depth": scale * (len(kept) / count) ** 0.5} if isinstance(scale, (int, float)) else {}


_RULES = (
    _shorten_lists,
    _expand_period,
    _renumber_layers,
    _recount_ends,
    _list_expert_steps,
    _fit_expert_interval,
    _fit_periods,
    _rescale_depth,
)


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
    return layers.depth.score_scale_flag is not None and bool(getattr(lm.model.config, layers.depth.score_scale_flag))


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
        try:
            shorten_config(config, layers.depth, len(layers), kept)
            shorter = build_empty(type(self._lm.model), config)
        except MODEL_ERRORS as error:
            return reason_of(error)
        modules = _in_new_places(whole, layers, kept)
        before, after = vars(self._lm.model.config), vars(config)
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
