"""What a configuration says of single layers, and what it says of those that are left when some are dropped.

Architectures say which layers are of which kind in many ways: a list with an entry for each layer, the numbers of some
of them, how many of the first ones, every so-manieth. Each way is a rule here; what no rule can say is found by
comparison with what the class makes of the result (`laconic.model.stock`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedConfig

Said = Mapping[str, Any]
Rule = Callable[[Said, int, Sequence[int]], dict[str, Any]]
"""From what is said by name, the number of layers and those that are kept, what is to be said by name."""

_BY_LAYER = re.compile(
    r"(?!mtp_)(.*_)?layers?(_.*)?$|.*_pattern$|indexer_types$|kv_sharing_modes$|attention_window$"
    r"|intermediate_size$|num_experts$|num_shared_expert$|moe_topk$"
)
"""Names of lists with an entry for each layer, where they are as long. Some are a number for all layers elsewhere."""
_NUMBERS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices")
"""Lists of the numbers of layers."""
_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
"""How many of the first layers."""
_LAST = ("num_kv_shared_layers",)
"""How many of the last layers."""
_PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
"""The layers whose number has this remainder by that."""


def without_layers(config: PreTrainedConfig, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """What `config` is to say, by name, once of its `count` layers only those of the numbers `kept` are left.

    The number of layers itself is not among it. What cannot be said is left as it is.
    """
    said = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    return {name: value for rule in _RULES for name, value in rule(said, count, kept).items()}


def _lists(said: Said, count: int, kept: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in said.items():
        if name in _NUMBERS or not _BY_LAYER.match(name):
            continue
        if isinstance(value, (list, tuple)) and len(value) == count:
            found[name] = [value[index] for index in kept]
        elif isinstance(value, str) and name.endswith("_pattern") and len(value) == count:
            found[name] = "".join(value[index] for index in kept)
    return found


def _repeated(said: Said, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """RecurrentGemma's list is one period, repeated as often as there are layers."""
    period = said.get("block_types")
    if not isinstance(period, (list, tuple)) or not period:
        return {}
    return {"block_types": [period[index % len(period)] for index in kept]}


def _numbers(said: Said, count: int, kept: Sequence[int]) -> dict[str, Any]:
    return {
        name: [kept.index(number) for number in said[name] if number in kept]
        for name in _NUMBERS
        if isinstance(said.get(name), (list, tuple))
    }


def _from_the_ends(said: Said, count: int, kept: Sequence[int]) -> dict[str, Any]:
    # A number beyond all layers stands for all of them, whatever it is.
    first = {name: number for name in _FIRST if isinstance(number := said.get(name), int) and number < count}
    last = {name: number for name in _LAST if isinstance(number := said.get(name), int)}
    counted = {name: sum(index < number for index in kept) for name, number in first.items()}
    return counted | {name: sum(index >= count - number for index in kept) for name, number in last.items()}


def _every_step(said: Said, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """Qwen's experts are in every so-manieth layer that is not named as without."""
    step, dense = said.get("decoder_sparse_step"), said.get("mlp_only_layers")
    if not isinstance(step, int) or not isinstance(dense, (list, tuple)) or step == 1:
        return {}
    are_dense = [new for new, old in enumerate(kept) if old in dense or (old + 1) % step != 0]
    return {"decoder_sparse_step": 1, "mlp_only_layers": are_dense}


def _interval(said: Said, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """ERNIE's experts are in every so-manieth layer from one to another."""
    start, end, step = (said.get(f"moe_layer_{name}") for name in ("start_index", "end_index", "interval"))
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(step, int)):
        return {}
    places = [new for new, old in enumerate(kept) if start <= old <= end and (old + 1) % step == 0]
    if not places:
        return {"moe_layer_start_index": len(kept), "moe_layer_end_index": len(kept)}
    steps = {after - before for before, after in pairwise(places)} or {places[0] + 1}
    step = min(steps)
    if len(steps) > 1 or (places[0] + 1) % step:
        return {}
    return {"moe_layer_start_index": places[0], "moe_layer_end_index": places[-1], "moe_layer_interval": step}


def _periods(said: Said, count: int, kept: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for names in _PERIODS:
        period, offset = (said.get(name) for name in names)
        if isinstance(period, int) and isinstance(offset, int):
            places = [new for new, old in enumerate(kept) if old % period == offset]
            found |= dict(zip(names, _period_of(places, len(kept)) or (), strict=False))
    return found


def _period_of(places: Sequence[int], count: int) -> tuple[int, int] | None:
    """(period, offset) of exactly these of `count` numbers; None where they are in no period."""
    if not places:
        return count + 1, count
    period = places[1] - places[0] if len(places) > 1 else count
    wanted = list(range(places[0], count, period))
    return (period, places[0]) if places[0] < period and list(places) == wanted else None


def _by_depth(said: Said, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """MiniCPM divides what a layer adds by the square root of their number; each goes on adding what it did."""
    scale = said.get("scale_depth")
    return {"scale_depth": scale * (len(kept) / count) ** 0.5} if isinstance(scale, (int, float)) else {}


_RULES: tuple[Rule, ...] = (_lists, _repeated, _numbers, _from_the_ends, _every_step, _interval, _periods, _by_depth)
