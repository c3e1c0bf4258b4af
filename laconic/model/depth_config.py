"""The configuration of a model that has lost layers, and whether its class can build the rest from it.

Architectures say in many ways which layers are of which kind: a list with an entry per layer, the indices of some, how
many of the first ones, every n-th. Each way is a rule here. What no rule covers is found by building both models on the
meta device: what the class makes of a kept block in its old place is compared with what it makes of the new
configuration in the new place, before any work (`laconic.model.stock`).
"""

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError, reason_of
from laconic.model.anatomy import Depth
from laconic.model.layers import Layers
from laconic.model.lm import LanguageModel
from laconic.model.stock import MODEL_ERRORS, Difference, build_empty, build_stock, differences, modules_by_path

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


def per_layer_values(config: PreTrainedConfig, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """The values of a configuration that change when layers are dropped, by key.

    The number of layers itself is not among them.

    Args:
        config: the configuration of the whole model.
        count: its number of layers.
        kept: the layers that stay.

    Example:
        >>> from transformers import LlamaConfig
        >>> per_layer_values(LlamaConfig(max_window_layers=2), 3, [0, 2])
        {'max_window_layers': 1}
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
    """Qwen has experts in every n-th layer that is not listed as dense."""
    step, dense = said.get("decoder_sparse_step"), said.get("mlp_only_layers")
    if not isinstance(step, int) or not isinstance(dense, (list, tuple)) or step == 1:
        return {}
    are_dense = [new for new, old in enumerate(kept) if old in dense or (old + 1) % step != 0]
    return {"decoder_sparse_step": 1, "mlp_only_layers": are_dense}


def _interval(said: Said, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """ERNIE has experts in every n-th layer from one index to another."""
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


PLACES = ("layer_idx", "layer_id", "layer_number")
"""What transformers calls the number of its block in a module that needs it."""
COUNTS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers")
"""And the number of all of them, in what holds them."""
SLIDES = "has_sliding_layers"
"""And whether any of them has a window."""
SCALING = "scaling"
"""And what an attention multiplies its scores by."""


def shorten_config(config: PreTrainedConfig, depth: Depth, count: int, kept: Sequence[int]) -> None:
    """Change `config` in place to describe only the `kept` ones of its `count` layers, as far as it can."""
    # Which of two stacks a list is about is known only where an architecture's entry says so.
    said = {} if config.is_encoder_decoder else per_layer_values(config, count, kept)
    for name in depth.lists:
        # Where it is none of the values but made of others, these are what has to change.
        entries = vars(config).get(config.attribute_map.get(name, name))
        if isinstance(entries, list) and len(entries) == count:
            said[name] = [entries[index] for index in kept]
    if depth.repeated_list is not None:
        said[depth.repeated_list] = [[said[depth.lists[0]], 1]]
    for name, value in {**said, depth.count: len(kept)}.items():
        setattr(config, name, value)


def scales_by_index(lm: LanguageModel, layers: Layers) -> bool:
    """Whether an attention divides its scores by the index of its block."""
    return layers.depth.score_scale_flag is not None and bool(getattr(lm.model.config, layers.depth.score_scale_flag))


def is_copied_list(
    attribute: str | None, value: object, before: Mapping[str, object], after: Mapping[str, object]
) -> bool:
    """Whether a module's `attribute` is a copy of a list of the configuration, which changes with it."""
    if attribute is None or not isinstance(value, list):
        return False
    return attribute in after and value == before.get(attribute)


class DropChecker:
    """Decides which layers of a model can go so that a configuration describes the others; results are cached.

    Args:
        lm: the model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._whole: PreTrainedModel | None = None
        self._kinds: dict[str, list[int]] = {}
        self._found: dict[tuple[str, tuple[int, ...]], str | None] = {}

    def check(self, layers: Layers, indices: Collection[int]) -> None:
        """Raise UserError where the layers of these indices cannot go."""
        obstacle = self._obstacle(layers, indices)
        if obstacle is not None:
            blocks = ", ".join(map(str, sorted(indices)))
            raise UserError(
                f"No configuration of '{self._lm.model.config.model_type}' describes the model without block {blocks}: "
                f"{obstacle}; drop other blocks."
            )

    def without(self, layers: Layers, indices: Collection[int]) -> bool:
        """Whether `check` accepts these layers."""
        return self._obstacle(layers, indices) is None

    def _obstacle(self, layers: Layers, indices: Collection[int]) -> str | None:
        kept = [index for index in range(len(layers)) if index not in indices]
        # A group of shared blocks is the same wherever it is visited.
        if not kept or len(kept) == len(layers) or layers.shared:
            return None
        if self._whole is None:
            self._whole = build_stock(self._lm.model)
        if layers.name not in self._kinds:
            self._kinds[layers.name] = _kinds(self._whole, layers)
        key = layers.name, tuple(self._kinds[layers.name][index] for index in kept)
        if key not in self._found:
            self._found[key] = self._look(self._whole, layers, kept)
        return self._found[key]

    def _look(self, whole: PreTrainedModel, layers: Layers, kept: Sequence[int]) -> str | None:
        config = copy.deepcopy(self._lm.model.config)
        try:
            shorten_config(config, layers.depth, len(layers), kept)
            shorter = build_empty(type(self._lm.model), config)
        except MODEL_ERRORS as error:
            return reason_of(error)
        here = _in_new_places(whole, layers, kept)
        before, after = vars(self._lm.model.config), vars(config)
        holders = {path for path in here if not path or layers.list.startswith(f"{path}.")}
        for found in differences(here, modules_by_path(shorter)):
            counts = (found.attribute in COUNTS and found.here == len(layers)) or found.attribute == SLIDES
            counts = counts and found.path in holders
            # What is as wide as there are layers keeps its width (ESM's contacts).
            is_wide = found.is_shape and not found.path.startswith(f"{layers.list}.")
            is_put_right = (
                found.attribute in PLACES or counts or is_copied_list(found.attribute, found.here, before, after)
            )
            if not (is_put_right or is_wide or self._is_made_up_for(layers, found)):
                return str(found)
        return None

    def _is_made_up_for(self, layers: Layers, found: Difference) -> bool:
        """Whether dropping blocks puts this right: T5's table moves to the first block, GPT-2's queries are scaled."""
        if found.attribute == SCALING and scales_by_index(self._lm, layers):
            return True
        moved = layers.depth.bias_table
        if moved is None:
            return False
        holder = f"{layers.list}.0.{moved.module}"
        return found.path == f"{holder}.{moved.table}" or (found.path == holder and found.attribute == moved.flag)


def _in_new_places(whole: PreTrainedModel, layers: Layers, kept: Sequence[int]) -> dict[str, nn.Module]:
    """The modules of `whole` without the dropped layers, by their new paths."""
    places = {f"{layers.list}.{old}": f"{layers.list}.{new}" for new, old in enumerate(kept)}
    gone = {f"{layers.list}.{old}" for old in range(len(layers))} - places.keys()
    levels = layers.list.count(".") + 2
    found: dict[str, nn.Module] = {}
    for path, module in modules_by_path(whole).items():
        block = ".".join(path.split(".")[:levels])
        if block not in gone:
            found[places.get(block, block) + path[len(block) :]] = module
    return found


def _kinds(whole: PreTrainedModel, layers: Layers) -> list[int]:
    """A number for each layer, equal for layers that differ in their index alone."""
    alike: list[Mapping[str, nn.Module]] = []
    numbers = []
    for path in layers.paths:
        block = modules_by_path(whole.get_submodule(path))
        number = next((at for at, other in enumerate(alike) if _are_alike(differences(block, other))), len(alike))
        if number == len(alike):
            alike.append(block)
        numbers.append(number)
    return numbers


def _are_alike(found: Iterable[Difference]) -> bool:
    return all(difference.attribute in PLACES for difference in found)
