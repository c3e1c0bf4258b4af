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
from laconic.model.embedding_modules import MODES, SENTENCE, TOKENS, DenseStage, LayerNorm, Normalize, Pooling, Stage
from laconic.numerics.moments import check_finite

_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags of older versions for each mode, in the order in which the vectors are concatenated."""
WEIGHTS = (("model.safetensors", True), ("pytorch_model.bin", False))
"""Files of a module's tensors in the order of preference, and whether they are safetensors."""


@dataclass(frozen=True)
class ModuleEntry:
    """An entry of modules.json.

    Args:
        kind: the name of its class in sentence-transformers.
        path: its folder; "" for the folder of the model.
    """

    kind: str
    path: str


def build_stages(module: ModuleEntry, location: Location) -> list[Stage]:
    """Build the stages of a module on the meta device: one, or none for a module that computes nothing.

    Args:
        module: the entry.
        location: the location of the model.

    Raises:
        UserError: its configuration is invalid.
    """
    # The configuration at the top is that of the transformer.
    config = (location.inside(module.path).json("config.json") if module.path else None) or {}
    where = f"'{module.path}' of '{location.source}'"
    try:
        with torch.device("meta"):
            stages = _BUILDERS[module.kind](config, where)
    except UserError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        is_missing = isinstance(error, KeyError)
        problem = f"lacks '{error.args[0]}'" if is_missing else f"makes no sense ({reason_of(error)})"
        raise UserError(f"The config.json in {where} {problem}; take the one that was saved with it.") from error
    for stage in stages:
        stage.path = module.path
    return stages


def read_module_tensors(location: Location, expected: Mapping[str, Tensor], path: str) -> Mapping[str, Tensor]:
    """Read the tensors of a module, as stored.

    Args:
        location: the folder of the module.
        expected: tensors with the expected names and shapes.
        path: the folder of the module, as errors name it.

    Raises:
        UserError: there is no weight file, it cannot be read, or its tensors have other names or shapes or are not
            finite.
    """
    where = f"'{path}' of '{location.source}'"
    files = ((location.file(name), is_safe) for name, is_safe in WEIGHTS)
    file, is_safe = next(((file, is_safe) for file, is_safe in files if file is not None), (None, False))
    if file is None:
        raise UserError(
            f"The folder {where} has neither {' nor '.join(name for name, _ in WEIGHTS)}; use a whole checkpoint."
        )
    check_file(file, is_safe, f"{location.source}/{path}")
    stored = read_tensors(file, is_safe)
    for name in sorted(expected.keys() ^ stored.keys()):
        has = "lack" if name in expected else "have, beside what their config.json describes,"
        raise UserError(f"The weights in {where} {has} '{name}'; use files that were saved together.")
    for name, tensor in stored.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"The weights in {where} do not fit its config.json: '{name}' has shape {tuple(tensor.shape)} in the "
                f"file and {tuple(expected[name].shape)} in the module; use files that were saved together."
            )
        check_finite(tensor, f"The weights in {where} hold NaN or infinite values in '{name}'; use a sound checkpoint.")
    return stored


def _pooling(config: Mapping[str, Any], where: str) -> list[Stage]:
    mode = config.get("pooling_mode")
    if mode is None:
        mode = [mode for flag, mode in _LEGACY_MODES.items() if config.get(flag)] or ["mean"]
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    if not modes:
        raise UserError(f"{where} has an empty pooling_mode; laconic knows {', '.join(MODES)}.")
    for mode in modes:
        if mode not in MODES:
            raise UserError(f"{where} pools by '{mode}', which laconic does not know; it knows {', '.join(MODES)}.")
    width = next((config[name] for name in WIDTHS if name in config), None)
    return [Pooling(modes, None if width is None else int(width), bool(config.get("include_prompt", True)))]


def _dense(config: Mapping[str, Any], where: str) -> list[Stage]:
    reads, writes = _names(config, where)
    return [
        DenseStage(
            (int(config["out_features"]), int(config["in_features"])),
            _activation(config.get("activation_function", "torch.nn.modules.activation.Tanh"), where),
            bias=bool(config.get("bias", True)),
            residual=bool(config.get("use_residual", False)),
            reads=reads,
            writes=writes,
        )
    ]


def _activation(class_name: object, where: str) -> nn.Module:
    """An instance of a class of torch.nn; nothing else is imported."""
    package, _, name = str(class_name).rpartition(".")
    activation_class = getattr(nn, name, None) if f"{package}.".startswith("torch.nn.") else None
    subject = f"The Dense module in {where} has the activation function '{class_name}'"
    if not (isinstance(activation_class, type) and issubclass(activation_class, nn.Module)):
        raise UserError(
            f"{subject}, which is no class of torch.nn; laconic never runs code that comes with a model; use a "
            "class of torch.nn."
        )
    remedy = "use a function like torch.nn.Tanh"
    try:
        activation = activation_class()
        output = activation(torch.zeros(1, 2))
    # Its class needs arguments, or its forward pass takes no vector; torch raises any of these errors then.
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{subject}, which cannot be applied to a vector: {reason_of(error)}; {remedy}.") from error
    if not (isinstance(output, Tensor) and output.shape == (1, 2)):
        raise UserError(f"{subject}, which changes the width of a vector; {remedy}.")
    return activation


def _names(config: Mapping[str, Any], where: str) -> tuple[str, str]:
    reads = config.get("module_input_name") or SENTENCE
    names = reads, config.get("module_output_name") or reads
    for name in names:
        if name not in (TOKENS, SENTENCE):
            raise UserError(
                f"The module in {where} reads or writes '{name}', and laconic knows {TOKENS} and {SENTENCE}; use a "
                "model that reads only text."
            )
    return names


_BUILDERS: dict[str, Callable[[Mapping[str, Any], str], list[Stage]]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": lambda config, _: [LayerNorm(int(config["dimension"]))],
    # Dropout does nothing in evaluation mode.
    "Dropout": lambda config, _: [],
    "Normalize": lambda config, where: [Normalize(*_names(config, where))],
}
KINDS = tuple(_BUILDERS)
"""The supported modules after a transformer."""


MODULES = "modules.json"
NAMESPACE = "sentence_transformers"
TRANSFORMER = "Transformer"
CROSS_ENCODER = "CrossEncoder"
TASKS = {"SentenceTransformer": "feature-extraction", "CrossEncoder": "sequence-classification"}
"""The task of the transformer, by the class of sentence-transformers."""


def parse_modules(entries: list[Any], model_type: str, source: str) -> list[ModuleEntry]:
    """Parse modules.json: a transformer, then modules of `KINDS`.

    Args:
        entries: the contents of modules.json.
        model_type: the sentence-transformers class of the model.
        source: the model, as errors name it.

    Raises:
        UserError: there are no modules, or some that are not supported, need code, or lie outside the folder.
    """
    modules = [_module(entry, source) for entry in entries]
    if not modules:
        raise UserError(f"The {MODULES} of '{source}' names no module; use a sound folder.")
    if model_type not in TASKS:
        raise UserError(
            f"The model '{source}' is a {model_type} of sentence-transformers, whose outputs laconic does not compute; "
            f"take {MODULES} out of its folder to have the transformer in it seen as a plain model."
        )
    for number, module in enumerate(modules):
        is_supported = module.kind in KINDS and model_type != CROSS_ENCODER
        if not (module.kind == TRANSFORMER if number == 0 else is_supported):
            raise UserError(
                f"The {MODULES} of '{source}' names '{module.kind}' as module {number} of a {model_type}, which "
                f"laconic does not compute; it reads a {TRANSFORMER}, and behind that in a SentenceTransformer "
                f"{', '.join(KINDS)}."
            )
    return modules


def _module(entry: Any, source: str) -> ModuleEntry:
    match entry:
        case {"type": str(class_name), "path": str(path)}:
            pass
        case _:
            raise UserError(f"An entry of {MODULES} of '{source}' has no type and path: {entry}; use a sound one.")
    package, _, _ = class_name.partition(".")
    if package != NAMESPACE:
        raise UserError(
            f"The model '{source}' needs custom code: its {MODULES} names '{class_name}', which is no module of "
            f"{NAMESPACE}, and laconic never runs code that comes with a model; use one that needs none."
        )
    relative = PureWindowsPath(path)
    if relative.anchor or ".." in relative.parts:
        raise UserError(
            f"The {MODULES} of '{source}' names the folder '{path}', which is not in that of the model; correct it."
        )
    return ModuleEntry(class_name.rpartition(".")[2], path)
