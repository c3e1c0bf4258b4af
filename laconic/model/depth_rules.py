"""Change the values of a configuration that describe the kinds of its layers, after some layers were dropped.

Configurations describe the kinds of layers in several ways: a list with an entry per layer, the indices of some layers,
the number of first layers of a kind, or a period. Each way is a rule here.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedConfig

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
