"""Whether a model that has lost blocks can be described by a configuration of its class.

The class makes a block anew from the configuration and the block's number. Where it would make something else of one
that has moved (a dense feed-forward where experts were, another scale), no checkpoint of the class can hold what is
left. This is found on the meta device, before any work: what the class makes of a kept block in its old place is
compared with what it makes of the new configuration in the new place.
"""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError, reason_of
from laconic.model.anatomy import Depth
from laconic.model.layers import Layers
from laconic.model.lm import LanguageModel
from laconic.model.per_layer import without_layers
from laconic.model.stock import MODEL_ERRORS, Difference, differences, made_of, modules_of, stock

PLACES = ("layer_idx", "layer_id", "layer_number")
"""What transformers calls the number of its block in a module that needs it."""
COUNTS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers")
"""And the number of all of them, in what holds them."""
SLIDES = "has_sliding_layers"
"""And whether any of them has a window."""
SCALING = "scaling"
"""And what an attention multiplies its scores by."""


def shorten(config: PreTrainedConfig, depth: Depth, count: int, kept: Sequence[int]) -> None:
    """Have `config` describe only the `kept` ones of its `count` layers, as far as it can; changed in place."""
    # Which of two stacks a list is about is known only where an architecture's entry says so.
    said = {} if config.is_encoder_decoder else without_layers(config, count, kept)
    for name in depth.lists:
        # Where it is none of the values but made of others, these are what has to change.
        entries = vars(config).get(config.attribute_map.get(name, name))
        if isinstance(entries, list) and len(entries) == count:
            said[name] = [entries[index] for index in kept]
    if depth.repeated is not None:
        said[depth.repeated] = [[said[depth.lists[0]], 1]]
    for name, value in {**said, depth.count: len(kept)}.items():
        setattr(config, name, value)


def scores_by_place(lm: LanguageModel, layers: Layers) -> bool:
    """Whether the attention of a block divides its scores by the block's number."""
    return layers.depth.scaled is not None and bool(getattr(lm.model.config, layers.depth.scaled))


def is_quoted(attribute: str | None, value: object, before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    """Whether a module's `attribute` only repeats a list of the configuration, which then changes too."""
    if attribute is None or not isinstance(value, list):
        return False
    return attribute in after and value == before.get(attribute)


class Describable:
    """Which blocks of `lm` can go so that a configuration describes the others; what was found is remembered."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._whole: PreTrainedModel | None = None
        self._kinds: dict[str, list[int]] = {}
        self._found: dict[tuple[str, tuple[int, ...]], str | None] = {}

    def check(self, layers: Layers, indices: Collection[int]) -> None:
        """Raise UserError where the layers of these numbers cannot go."""
        obstacle = self._obstacle(layers, indices)
        if obstacle is not None:
            blocks = ", ".join(map(str, sorted(indices)))
            raise UserError(
                f"No configuration of '{self._lm.model.config.model_type}' describes the model without block {blocks}: "
                f"{obstacle}; drop other blocks."
            )

    def without(self, layers: Layers, indices: Collection[int]) -> bool:
        """Whether `check` has nothing to say."""
        return self._obstacle(layers, indices) is None

    def _obstacle(self, layers: Layers, indices: Collection[int]) -> str | None:
        kept = [index for index in range(len(layers)) if index not in indices]
        # A group of shared blocks is the same wherever it is visited.
        if not kept or len(kept) == len(layers) or layers.shared:
            return None
        if self._whole is None:
            self._whole = stock(self._lm.model)
        if layers.name not in self._kinds:
            self._kinds[layers.name] = _kinds(self._whole, layers)
        key = layers.name, tuple(self._kinds[layers.name][index] for index in kept)
        if key not in self._found:
            self._found[key] = self._look(self._whole, layers, kept)
        return self._found[key]

    def _look(self, whole: PreTrainedModel, layers: Layers, kept: Sequence[int]) -> str | None:
        config = copy.deepcopy(self._lm.model.config)
        try:
            shorten(config, layers.depth, len(layers), kept)
            shorter = made_of(type(self._lm.model), config)
        except MODEL_ERRORS as error:
            return reason_of(error)
        here = _in_new_places(whole, layers, kept)
        before, after = vars(self._lm.model.config), vars(config)
        holders = {path for path in here if not path or layers.list.startswith(f"{path}.")}
        for found in differences(here, modules_of(shorter)):
            counts = (found.attribute in COUNTS and found.here == len(layers)) or found.attribute == SLIDES
            counts = counts and found.path in holders
            # What is as wide as there are layers keeps its width (ESM's contacts).
            is_wide = found.is_shape and not found.path.startswith(f"{layers.list}.")
            is_put_right = found.attribute in PLACES or counts or is_quoted(found.attribute, found.here, before, after)
            if not (is_put_right or is_wide or self._is_made_up_for(layers, found)):
                return str(found)
        return None

    def _is_made_up_for(self, layers: Layers, found: Difference) -> bool:
        """Whether dropping blocks puts this right: T5's table moves to the first block, GPT-2's queries are scaled."""
        if found.attribute == SCALING and scores_by_place(self._lm, layers):
            return True
        moved = layers.depth.bias_table
        if moved is None:
            return False
        holder = f"{layers.list}.0.{moved.module}"
        return found.path == f"{holder}.{moved.table}" or (found.path == holder and found.attribute == moved.flag)


def _in_new_places(whole: PreTrainedModel, layers: Layers, kept: Sequence[int]) -> dict[str, nn.Module]:
    """The modules of `whole` without those of dropped layers, by the paths that they then have."""
    places = {f"{layers.list}.{old}": f"{layers.list}.{new}" for new, old in enumerate(kept)}
    gone = {f"{layers.list}.{old}" for old in range(len(layers))} - places.keys()
    levels = layers.list.count(".") + 2
    found: dict[str, nn.Module] = {}
    for path, module in modules_of(whole).items():
        block = ".".join(path.split(".")[:levels])
        if block not in gone:
            found[places.get(block, block) + path[len(block) :]] = module
    return found


def _kinds(whole: PreTrainedModel, layers: Layers) -> list[int]:
    """A number for each layer, the same for those that are alike but for their places."""
    alike: list[Mapping[str, nn.Module]] = []
    numbers = []
    for path in layers.paths:
        block = modules_of(whole.get_submodule(path))
        number = next((at for at, other in enumerate(alike) if _are_alike(differences(block, other))), len(alike))
        if number == len(alike):
            alike.append(block)
        numbers.append(number)
    return numbers


def _are_alike(found: Iterable[Difference]) -> bool:
    return all(difference.attribute in PLACES for difference in found)
