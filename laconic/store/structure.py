"""The structure of a compressed model: its difference from the stock model as JSON, and how to rebuild the model.

A structure maps the dotted path of a module to `{"kind": ..., **spec}`. `"aliases"` lists the other paths of a format
that occurs in several places (tied word embeddings). `"source"` is the path of the format whose input factor it shares.
An entry describes a format, the compressed matrices of all experts of a layer, that layer
(`laconic.store.expert_layers`), or a changed shape (`laconic.store.shapes`).

The `per_layer_config` of transformers is not used: it is for configuration attributes that differ by layer, and formats
are not attributes of the configuration.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from laconic.errors import UserError, quote, reason_of
from laconic.formats import FORMATS, DenseExpertStack, ExpertStack, Format, PackedEmbedding
from laconic.formats.expert_stacks import STACKS
from laconic.model.enumeration import is_below, tie, untie
from laconic.model.site import has_module
from laconic.model.stock import MODEL_ERRORS, build_stock, copy_attention_type, differences, modules_by_path
from laconic.store.expert_layers import EXPERTS, find_expert_layers, insert_expert_layer, placeholders
from laconic.store.shapes import ATTRIBUTES, MAPPED, RESIZED, apply_shape, changed_shapes

Structure = Mapping[str, Mapping[str, Any]]
Replacement = Format | ExpertStack
"""A module in place of a layer, or of a matrix of every expert."""
REMEDY = "take the config.json that was saved with the weights"


def describe(model: PreTrainedModel, entries: Structure | None = None) -> dict[str, dict[str, Any]]:
    """The structure of a model: one entry for each module that its class does not build from the configuration.

    To check the result, the model is rebuilt without weights from configuration and structure, as `from_pretrained`
    does. Module classes, names and shapes of tensors, and integer and boolean attributes must be equal.

    Args:
        model: a model with formats or changed shapes, or a stock model.
        entries: the entries of its formats, if its weights are not in memory, which some entries depend on.

    Returns:
        The entries by path, in the order of `named_modules`; empty for a stock model.

    Raises:
        UserError: the rebuilt model differs, so that the model cannot be saved.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from laconic.formats import LowRank
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))
        >>> describe(model)
        {}
        >>> model.pooler.dense = LowRank(8, 8, rank=2, bias=True)
        >>> describe(model)["pooler.dense"]["kind"]
        'low-rank'
    """
    class_name = type(model).__name__
    try:
        plain = build_stock(model)
    except MODEL_ERRORS as error:
        raise UserError(
            f"The class {class_name} cannot be built from the configuration of this model: {reason_of(error)}; "
            "correct the configuration."
        ) from error
    copy_attention_type(model, plain)
    found = format_entries(model) if entries is None else {name: dict(entry) for name, entry in entries.items()}
    structure = {**found, **changed_shapes(model, plain)}
    rebuild(plain, structure)
    unpack_formats(plain)
    difference = next(differences(modules_by_path(model), modules_by_path(plain)), None)
    if difference is not None:
        raise UserError(
            f"The configuration does not describe the model: {class_name} would build from it a model in which "
            f"{difference}; correct the configuration, or start from the original model."
        )
    return structure


def format_entries(model: PreTrainedModel, path: str = "") -> dict[str, dict[str, Any]]:
    """The entry of each format of a model, and of the layers and stacks of experts.

    Args:
        model: the model.
        path: the path of the part that the formats are in, at one of their places; "" is the whole model. A word
            embedding that is a view of a format in the part belongs to it.

    Returns:
        The entries, by the first path of the format.
    """
    paths = _format_paths(model)
    layers = (name for name in find_expert_layers(model) if is_below(name, path))
    entries: dict[str, dict[str, Any]] = {name: {"kind": EXPERTS} for name in layers}
    inside = [place for places in paths.values() if any(is_below(each, path) for each in places) for place in places]
    for format, (name, *aliases) in paths.items():
        if not any(is_below(place, own) for own in (name, *aliases) for place in inside):
            continue
        entry = entries[name] = {"kind": format.kind, **format.spec()}
        if aliases:
            entry["aliases"] = aliases
        if isinstance(format, Format) and format.source is not None:
            entry["source"] = paths[format.source][0]
    return entries


def outermost_formats(model: PreTrainedModel) -> dict[Format, list[str]]:
    """All paths of each format that is not inside another format."""
    paths = _format_paths(model)
    every = {path for names in paths.values() for path in names}
    return {
        format: names
        for format, names in paths.items()
        if isinstance(format, Format) and not any(names[0].startswith(f"{other}.") for other in every)
    }


def rebuild(model: PreTrainedModel, structure: Structure) -> None:
    """Apply a structure to a stock model: insert empty formats on the meta device, change shapes, and tie formats.

    Args:
        model: a stock model; it is changed in place.
        structure: the result of `describe`. It may come from a sibling class: paths are tried with and without the
            prefix of the base model, and entries for modules that this class does not have (a head) are skipped.

    Raises:
        UserError: the kind of an entry is unknown, or an entry does not fit its kind or its module.
    """
    inserted = list[list[str]]()
    # Sorted by depth: a format is inserted before the formats inside it.
    for name in sorted(structure, key=lambda path: path.count(".")):
        entry = structure[name]
        aliases = _aliases(name, entry)
        first = _resolve(model, name)
        others = [path for alias in aliases if (path := _resolve(model, alias)) is not None]
        if first is None and others:
            raise UserError(
                f"{type(model).__name__} has '{others[0]}' but not '{name}', which holds its weights; "
                f"load the checkpoint with the class it was saved from."
            )
        if first is not None and entry.get("kind") in (RESIZED, ATTRIBUTES, MAPPED):
            apply_shape(model, first, name, entry)
        elif first is not None and entry.get("kind") == EXPERTS:
            insert_expert_layer(model, first, name)
        elif first is not None:
            format = _empty_format(name, entry)
            inserted.append([first, *others])
            for path in inserted[-1]:
                model.set_submodule(path, format)
    # All at once, because each call looks at every tie of the model.
    untie(model, {path for paths in inserted for path in paths})
    for paths in inserted:
        tie(model, paths[0], paths[1:])
    for name, entry in structure.items():
        if "source" in entry:
            _connect(model, name, entry["source"])


def unpack_formats(model: PreTrainedModel) -> None:
    """Convert each layer from its packed form on disk to its form for computing, one layer at a time.

    Args:
        model: a model whose weights were just loaded; it is changed in place.

    Raises:
        UserError: the tensors of a layer are inconsistent.
    """
    layers = _packed_layers(model)
    untie(model, {path for paths in layers.values() for path in paths})
    for layer, paths in layers.items():
        layer.unpack()
        # Unpacking renames tensors. The tensors of a layer stay shared between its paths.
        tie(model, paths[0], paths[1:])


def stored_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors to save, by name. A packed layer with several paths is listed only under the first one."""
    ignored = model._keys_to_ignore_on_save or ()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    for layer, paths in _packed_layers(model).items():
        for alias in paths[1:]:
            for tensor in layer.packed_names:
                del state[f"{alias}.{tensor}"]
    return state | placeholders(model)


def _format_paths(model: PreTrainedModel) -> dict[Replacement, list[str]]:
    paths: dict[Replacement, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        # Dense stacks hold the parameters that the class has.
        if isinstance(module, Replacement) and not isinstance(module, DenseExpertStack):
            paths.setdefault(module, []).append(name)
    return paths


def _packed_layers(model: PreTrainedModel) -> dict[Replacement, list[str]]:
    return {format: paths for format, paths in _format_paths(model).items() if format.packed_names}


def _aliases(name: str, entry: Mapping[str, Any]) -> Sequence[str]:
    """The other paths of the format at `name`, after checking that they and the source are text."""
    aliases, source = entry.get("aliases", ()), entry.get("source", "")
    if not isinstance(aliases, Sequence) or not all(isinstance(path, str) for path in (*aliases, source)):
        raise UserError(
            f"quantization_config.structure['{name}'] in config.json must have paths as aliases and source; got "
            f"{quote({key: entry[key] for key in ('aliases', 'source') if key in entry})}: {REMEDY}."
        )
    return aliases


def _connect(model: PreTrainedModel, name: str, source: str) -> None:
    """Make the format at `name` share the input factor of the format at `source`, if this class has both."""
    reader, owner = (path and model.get_submodule(path) for path in (_resolve(model, name), _resolve(model, source)))
    if isinstance(reader, Format):
        if not isinstance(owner, Format):
            raise UserError(f"The layer '{name}' reads from '{source}', which is not stored as a factored layer.")
        reader.set_source(owner)


def _empty_format(name: str, entry: Mapping[str, Any]) -> Replacement:
    kinds: dict[str, type[Replacement]] = {format.kind: format for format in (*FORMATS, *STACKS)}
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(
            f"The layer '{name}' is stored as {quote(kind)}, which this version of laconic does not know "
            f"(it knows {', '.join(sorted((*kinds, EXPERTS, RESIZED, ATTRIBUTES, MAPPED)))}); upgrade laconic."
        )
    spec = {key: value for key, value in entry.items() if key not in ("kind", "aliases", "source")}
    misfit = f"quantization_config.structure['{name}'] in config.json does not fit the kind '{kind}'"
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # A shape with zeros raises an error below.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            format = kinds[kind].empty(**spec)
    except MODEL_ERRORS as error:
        raise UserError(f"{misfit}: {reason_of(error)}; {REMEDY}.") from error
    # The shape of a packed embedding is known only when its codes are set.
    if not isinstance(format, PackedEmbedding) and any(type(side) is not int or side < 1 for side in format.shape):
        raise UserError(f"{misfit}: its shape would be {format.shape}; {REMEDY}.")
    return format


def _resolve(model: PreTrainedModel, name: str) -> str | None:
    """The path of `name` in this class: unchanged, or with the prefix of the base model added or removed; None if
    there is no such module."""
    prefix = f"{model.base_model_prefix}."
    candidates = (name, name.removeprefix(prefix), prefix + name)
    return next((path for path in candidates if has_module(model, path)), None)
