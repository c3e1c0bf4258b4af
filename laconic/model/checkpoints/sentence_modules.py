"""The sentence-transformers modules behind a transformer: modules.json, and the configuration and tensors of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import UserError, reason_of
from laconic.model.checkpoints.location import Location
from laconic.model.checkpoints.weights import check_file, read_tensors
from laconic.model.embedding import WIDTHS
from laconic.model.embedding_modules import MODES, SENTENCE, TOKENS, Dense, LayerNorm, Normalize, Pooling, Stage
from laconic.numerics.moments import check_finite

_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags of older versions, in the order in which their vectors stand side by side."""
WEIGHTS = (("model.safetensors", True), ("pytorch_model.bin", False))
"""Files of a module's tensors, in the order in which they are looked for, and whether they are safetensors."""


@dataclass(frozen=True)
class Module:
    """An entry of modules.json.

    Args:
        kind: the name of its class in sentence-transformers.
        path: its folder; "" for that of the model.
    """

    kind: str
    path: str


def build_stages(module: Module, location: Location) -> list[Stage]:
    """Build the stages of a module on the meta device: one, or none where it does nothing.

    Args:
        module: the entry.
        location: the location of the model.

    Raises:
        UserError: its configuration is invalid.
    """
    # At the top lies the configuration of the transformer.
    config = (location.inside(module.path).json("config.json") if module.path else None) or {}
    where = f"'{module.path}' of '{location.source}'"
    try:
        with torch.device("meta"):
            stages = _BUILDERS[module.kind](config, where)
    except UserError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        what = f"lacks '{error.args[0]}'" if isinstance(error, KeyError) else f"makes no sense ({reason_of(error)})"
        raise UserError(f"The config.json in {where} {what}; take the one that was saved with it.") from error
    for stage in stages:
        stage.path = module.path
    return stages


def read_module_tensors(location: Location, wanted: Mapping[str, Tensor], path: str) -> Mapping[str, Tensor]:
    """Read the tensors of a module, as stored.

    Args:
        location: the location of the module.
        wanted: tensors with the names and shapes that are expected.
        path: the folder of the module, as errors name it.

    Raises:
        UserError: there is no weight file, it cannot be read, or its tensors are others.
    """
    where = f"'{path}' of '{location.source}'"
    stored = _read(location, path, where)
    for name in sorted(wanted.keys() ^ stored.keys()):
        has = "lack" if name in wanted else "have, beside what their config.json describes,"
        raise UserError(f"The weights in {where} {has} '{name}'; use files that were saved together.")
    for name, tensor in stored.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"The weights in {where} do not fit its config.json: '{name}' has shape {tuple(tensor.shape)} in the "
                f"file and {tuple(wanted[name].shape)} in the module; use files that were saved together."
            )
        check_finite(tensor, f"The weights in {where} hold NaN or infinite values in '{name}'; use a sound checkpoint.")
    return stored


def _read(location: Location, path: str, where: str) -> Mapping[str, Tensor]:
    for name, is_safe in WEIGHTS:
        if (file := location.file(name)) is not None:
            called = f"{location.source}/{path}"
            check_file(file, is_safe, called)
            return read_tensors(file, is_safe)
    raise UserError(
        f"The folder {where} has neither {' nor '.join(name for name, _ in WEIGHTS)}; use a whole checkpoint."
    )


def _pooling(config: Mapping[str, Any], where: str) -> list[Stage]:
    given = config.get("pooling_mode")
    if given is None:
        given = [mode for flag, mode in _LEGACY_MODES.items() if config.get(flag)] or ["mean"]
    modes = (given,) if isinstance(given, str) else tuple(given)
    if not modes:
        raise UserError(f"{where} pools in no way (its pooling_mode is empty); laconic knows {', '.join(MODES)}.")
    for mode in modes:
        if mode not in MODES:
            raise UserError(f"{where} pools by '{mode}', which laconic does not know; it knows {', '.join(MODES)}.")
    width = next((config[name] for name in WIDTHS if name in config), None)
    return [Pooling(modes, None if width is None else int(width), bool(config.get("include_prompt", True)))]


def _dense(config: Mapping[str, Any], where: str) -> list[Stage]:
    reads, writes = _names(config, where)
    return [
        Dense(
            (int(config["out_features"]), int(config["in_features"])),
            _activation(config.get("activation_function", "torch.nn.modules.activation.Tanh"), where),
            bias=bool(config.get("bias", True)),
            residual=bool(config.get("use_residual", False)),
            reads=reads,
            writes=writes,
        )
    ]


def _activation(named: object, where: str) -> nn.Module:
    """An instance of a class of torch.nn; nothing else is imported."""
    package, _, name = str(named).rpartition(".")
    kind = getattr(nn, name, None) if f"{package}.".startswith("torch.nn.") else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(
            f"The Dense module in {where} has the activation function '{named}', which is no class of torch.nn; "
            "laconic never runs code that comes with a model; use one that needs none."
        )
    unfit = f"The Dense module in {where} has the activation function '{named}'"
    remedy = "use a function like torch.nn.Tanh"
    try:
        activation = kind()
        given = activation(torch.zeros(1, 2))
    # Its class needs arguments, or its forward pass takes no vector; torch raises any of these then.
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{unfit}, which cannot be applied to a vector: {reason_of(error)}; {remedy}.") from error
    if not (isinstance(given, Tensor) and given.shape == (1, 2)):
        raise UserError(f"{unfit}, which changes the width of a vector; {remedy}.")
    return activation


def _layer_norm(config: Mapping[str, Any], where: str) -> list[Stage]:
    return [LayerNorm(int(config["dimension"]))]


def _normalize(config: Mapping[str, Any], where: str) -> list[Stage]:
    return [Normalize(*_names(config, where))]


def _dropout(config: Mapping[str, Any], where: str) -> list[Stage]:
    # Nothing is dropped but while the module itself is trained.
    return []


def _names(config: Mapping[str, Any], where: str) -> tuple[str, str]:
    reads = config.get("module_input_name") or SENTENCE
    names = reads, config.get("module_output_name") or reads
    for name in names:
        if name not in (TOKENS, SENTENCE):
            raise UserError(
                f"The module in {where} reads or writes '{name}', and laconic knows {TOKENS} and {SENTENCE}; use a "
                "model that makes vectors of texts alone."
            )
    return names


_BUILDERS: dict[str, Callable[[Mapping[str, Any], str], list[Stage]]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Dropout": _dropout,
    "Normalize": _normalize,
}
KINDS = tuple(_BUILDERS)
"""Modules of the library that may follow a transformer."""


MODULES = "modules.json"
NAMESPACE = "sentence_transformers"
TRANSFORMER = "Transformer"
CROSS_ENCODER = "CrossEncoder"
TASKS = {"SentenceTransformer": "feature-extraction", "CrossEncoder": "sequence-classification"}
"""By class of the library, what its transformer does."""


def parse_modules(listed: list[Any], model_type: str, source: str) -> list[Module]:
    """Parse modules.json: a transformer, then modules of `KINDS`.

    Args:
        listed: the contents of modules.json.
        model_type: the sentence-transformers class of the model.
        source: the model, as errors name it.

    Raises:
        UserError: there are no modules, or some that are not supported, need code, or lie outside the folder.
    """
    modules = [_module(entry, source) for entry in listed]
    if not modules:
        raise UserError(f"The {MODULES} of '{source}' names no module; use a sound folder.")
    if model_type not in TASKS:
        raise UserError(
            f"The model '{source}' is a {model_type} of sentence-transformers, whose outputs laconic does not compute; "
            f"take {MODULES} out of its folder to have the transformer in it seen as a plain model."
        )
    for number, module in enumerate(modules):
        known = module.kind == TRANSFORMER if number == 0 else module.kind in KINDS and model_type != CROSS_ENCODER
        if not known:
            raise UserError(
                f"The {MODULES} of '{source}' names '{module.kind}' as module {number} of a {model_type}, which "
                f"laconic does not compute; it reads a {TRANSFORMER}, and behind that in a SentenceTransformer "
                f"{', '.join(KINDS)}."
            )
    return modules


def _module(entry: Any, source: str) -> Module:
    match entry:
        case {"type": str(named), "path": str(path)}:
            pass
        case _:
            raise UserError(f"An entry of {MODULES} of '{source}' has no type and path: {entry}; use a sound one.")
    package, _, _ = named.partition(".")
    if package != NAMESPACE:
        raise UserError(
            f"The model '{source}' needs code of its own: its {MODULES} names '{named}', which is no module of "
            f"{NAMESPACE}, and laconic never runs code that comes with a model; use one that needs none."
        )
    inside = PureWindowsPath(path)
    if inside.anchor or ".." in inside.parts:
        raise UserError(
            f"The {MODULES} of '{source}' names the folder '{path}', which is not in that of the model; correct it."
        )
    return Module(named.rpartition(".")[2], path)
