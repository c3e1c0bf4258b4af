"""What in a model is not as its class makes it, as JSON, and the same model rebuilt from that.

A structure maps a module's dotted path to `{"kind": ..., **spec}`, with `"aliases"` where one format stands in several
places (tied word embeddings) and `"source"` where it reads from another one (shared input factors); besides formats
there are the kinds of `laconic.store.shapes`. It says what the model is, not how it came to be, and leaves
transformers' `per_layer_config` alone: that key holds configuration attributes that differ by layer, and none of these
changes any.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from laconic.errors import UserError, reason_of, shown
from laconic.formats import FORMATS, Format, PackedEmbedding
from laconic.model import ties
from laconic.model.stock import MODEL_ERRORS, build_stock, copy_attention_type, differences, modules_by_path
from laconic.store.packed import unpack
from laconic.store.shapes import ATTRIBUTES, MAPPED, RESIZED, deviations, restore

Structure = Mapping[str, Mapping[str, Any]]


def describe(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """The structure of `model`: its modules that the class does not build from the configuration alone.

    The model is built from both without weights, as `from_pretrained` will, and compared with the one in memory: the
    classes of modules, the tensors and shapes in each, and every flag and number, many of which depend on a layer's
    place.

    Raises:
        UserError: there is something that configuration and structure cannot say; then no folder can hold the model.
    """
    kind = type(model).__name__
    try:
        plain = build_stock(model)
    except MODEL_ERRORS as error:
        raise UserError(
            f"The class {kind} makes no model of this one's configuration: {reason_of(error)}; put that right."
        ) from error
    copy_attention_type(model, plain)
    structure = {**formats(model), **deviations(model, plain)}
    rebuild(plain, structure)
    unpack(plain)
    found = next(differences(modules_by_path(model), modules_by_path(plain)), None)
    if found is not None:
        raise UserError(
            f"The configuration does not describe the model, so it would be loaded as another one: of it the class "
            f"{kind} makes one in which {found}; put the configuration right, or start from the model as it was."
        )
    return structure


def formats(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """The part of the structure that is formats."""
    places: dict[Format, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Format):
            places.setdefault(module, []).append(name)
    return {names[0]: _entry(format, names[1:], places) for format, names in places.items()}


def outermost(structure: Structure) -> dict[str, tuple[str, ...]]:
    """Path → all the places of every format that does not lie inside another; `structure` is of formats alone."""
    every = {name for name, entry in structure.items() for name in (name, *entry.get("aliases", ()))}
    return {
        name: (name, *entry.get("aliases", ()))
        for name, entry in structure.items()
        if not any(name.startswith(f"{other}.") for other in every)
    }


def rebuild(model: PreTrainedModel, structure: Structure) -> None:
    """Put an empty format (on the meta device) wherever `structure` says, tied as it says, and shapes likewise.

    `structure` may come from a sibling class: a head may be here and not there, with the base model's prefix.

    Raises:
        UserError: a kind that this version lacks, or arguments that do not fit it.
    """
    # By depth, so that a format is there before the formats inside it.
    for name in sorted(structure, key=lambda path: path.count(".")):
        entry = structure[name]
        aliases = _places_in(name, entry)
        first = _resolve(model, name)
        others = [path for alias in aliases if (path := _resolve(model, alias)) is not None]
        if first is None and others:
            raise UserError(
                f"{type(model).__name__} has '{others[0]}' but not '{name}', which holds its weights; "
                f"load the checkpoint with the class it was saved from."
            )
        if first is not None and entry.get("kind") in (RESIZED, ATTRIBUTES, MAPPED):
            restore(model, first, name, entry)
        elif first is not None:
            _put(model, _shell(name, entry), first, others)
    for name, entry in structure.items():
        if "source" in entry:
            _link(model, name, entry["source"])


def _places_in(name: str, entry: Mapping[str, Any]) -> Sequence[str]:
    """The aliases of the format at `name`: other module paths that share it."""
    aliases, source = entry.get("aliases", ()), entry.get("source", "")
    if not isinstance(aliases, Sequence) or not all(isinstance(path, str) for path in (*aliases, source)):
        raise UserError(
            f"quantization_config.structure['{name}'] in config.json must have paths as aliases and source; got "
            f"{shown({key: entry[key] for key in ('aliases', 'source') if key in entry})}: take the config.json that "
            "was saved with the weights."
        )
    return aliases


def _entry(format: Format, aliases: list[str], places: Mapping[Format, list[str]]) -> dict[str, Any]:
    source = {} if format.source is None else {"source": places[format.source][0]}
    return {"kind": format.kind, **format.spec(), **({"aliases": aliases} if aliases else {}), **source}


def _link(model: PreTrainedModel, name: str, source: str) -> None:
    """Make the format at `name` read from the one at `source`, where this class has them."""
    reader, owner = (path and model.get_submodule(path) for path in (_resolve(model, name), _resolve(model, source)))
    if isinstance(reader, Format):
        if not isinstance(owner, Format):
            raise UserError(f"The layer '{name}' reads from '{source}', which is not stored as a factored layer.")
        reader.set_source(owner)


def _put(model: PreTrainedModel, format: Format, first: str, others: list[str]) -> None:
    places = [first, *others]
    ties.untie(model, set(places))
    for place in places:
        model.set_submodule(place, format)
    ties.tie(model, first, others)


def _shell(name: str, entry: Mapping[str, Any]) -> Format:
    kinds = {format.kind: format for format in FORMATS}
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(
            f"The layer '{name}' is stored as {shown(kind)}, which this version of laconic does not know "
            f"(it knows {', '.join(sorted((*kinds, RESIZED, ATTRIBUTES, MAPPED)))}); upgrade laconic."
        )
    spec = {key: value for key, value in entry.items() if key not in ("kind", "aliases", "source")}
    misfit = f"quantization_config.structure['{name}'] in config.json does not fit the kind '{kind}'"
    remedy = "take the config.json that was saved with the weights"
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # Told below, in a sentence.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            made = kinds[kind].empty(**spec)
    except MODEL_ERRORS as error:
        raise UserError(f"{misfit}: {reason_of(error)}; {remedy}.") from error
    # An embedding of codes has their shape, and they come next.
    if not isinstance(made, PackedEmbedding) and any(type(side) is not int or side < 1 for side in made.shape):
        raise UserError(f"{misfit}: its shape would be {made.shape}; {remedy}.")
    return made


def _resolve(model: PreTrainedModel, name: str) -> str | None:
    """`name` as this class calls it: as it is, or without or with the prefix of the base model; None if absent."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if _has(model, candidate):
            return candidate
    return None


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
