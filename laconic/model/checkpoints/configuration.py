"""Read config.json, and check that a model needs no custom code.

Values that transformers does not check are checked here: special tokens, rotary embeddings, class labels and numbers of
layers. Each must have the type that all readers of the key expect.

A repository can name Python classes under `auto_map` in config.json or tokenizer_config.json, which transformers runs
with `trust_remote_code`. laconic never runs them: if transformers has the class itself, that class is used and a notice
is given; otherwise the model is refused.
"""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from laconic.errors import CheckpointNotice, UserError, must_be, quote, reason_of
from laconic.model.anatomy import find_entry
from laconic.model.checkpoints.location import Location
from laconic.model.task import as_classes, auto_classes

CONFIG = "config.json"
AUTO_MAP = "auto_map"
ROPE = ("rope_parameters", "rope_scaling")
ROPE_TYPES = ("rope_type", "type")
"""Keys of rotary embeddings whose values are text; all other values are numbers, lists of numbers or booleans."""
DEPTH = re.compile(r"(num|n)_(\w+_)?layers?|(encoder|decoder)_layers")
"""Keys of numbers of blocks."""
MAX_LAYERS = 10_000
"""Several times as many as any model has. Each layer takes memory before it can be checked."""
DTYPES = ("float16", "bfloat16", "float32", "float64")
"""The dtypes of plain weights."""
TORCH_ATTENTION = ("eager", "sdpa")
"""The implementations of attention that need no package besides torch."""


def read_config(location: Location) -> PreTrainedConfig:
    """Read the configuration of a model, without its references to custom code.

    Args:
        location: the folder or the repository.

    Raises:
        UserError: config.json is missing or invalid, is of another library, or needs custom code.
    """
    raw = location.json(CONFIG)
    source = location.source
    if raw is not None:
        _check_raw(raw, source)
        # A plug-in registers its classes with transformers when it is imported.
        find_entry(raw.get("model_type") or "")
        _check_model_code(raw, source)
    try:
        config = AutoConfig.from_pretrained(location.name, **location.options)
    except StrictDataclassError as error:
        # A value has another type than the class declares; the second line of the message names the value.
        raise _invalid_error(source, reason_of(error)) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        # The class expected, for example, a mapping in place of a list, or divided by a value that is 0.
        message = reason_of(error).removeprefix(f"{type(error).__name__}: ")
        raise _invalid_error(source, f"{type(error).__name__}: {message}") from error
    except (OSError, ValueError, ImportError) as error:
        if raw is not None:
            raise _architecture_error(raw, source) or _invalid_error(source, reason_of(error)) from error
        raise UserError(
            f"There is no loadable model '{source}', neither as a folder nor on the hub: {reason_of(error)}."
        ) from error
    _reset(config)
    # An implementation that needs a package, or is fetched from the hub as code, changes only the speed.
    if config._attn_implementation not in TORCH_ATTENTION:
        config._attn_implementation = None
    return config


def _reset(config: PreTrainedConfig) -> None:
    """Remove all references to custom code, and settings for more outputs; callers request the outputs they need."""
    vars(config).pop(AUTO_MAP, None)
    config.return_dict = True
    config.output_attentions = config.output_hidden_states = False
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            _reset(part)


def _invalid_error(source: str, reason: str) -> UserError:
    return UserError(
        f"The config.json of '{source}' describes no model: {reason}; take the one saved with the weights."
    )


def _architecture_error(raw: Mapping[str, Any], source: str) -> UserError | None:
    """The error about `model_type`; None if transformers has that architecture."""
    model_type = raw.get("model_type")
    if not model_type:
        return UserError(
            f"The config.json of '{source}' does not say model_type, the name of an architecture; take the one saved "
            "with the weights."
        )
    if model_type in CONFIG_MAPPING:
        return None
    return UserError(
        f"The config.json of '{source}' names the architecture {quote(model_type)}, which transformers "
        f"{transformers.__version__} does not have; upgrade transformers, or take another model."
    )


def _check_raw(raw: dict[str, Any], source: str) -> None:
    if "model_type" not in raw and any(key.startswith("_diffusers") or key == "_class_name" for key in raw):
        raise UserError(
            f"The folder '{source}' holds a part of a diffusers pipeline and no language model; "
            "give a folder saved by save_pretrained of a transformers model."
        )
    where = f"In the config.json of '{source}', "
    for name, value in _find_floats(raw):
        # An infinity can be intended (an optimizer step without a limit); a NaN cannot.
        if math.isnan(value):
            raise must_be(f"{where}{name}", "a number", value)
    if not isinstance(raw.get("model_type") or "", str):
        raise must_be(f"{where}model_type", "the name of an architecture", raw["model_type"])
    for part in (raw, *(value for name, value in raw.items() if name.endswith("_config") and isinstance(value, dict))):
        for name, layers in part.items():
            if DEPTH.fullmatch(name) and isinstance(layers, int) and layers > MAX_LAYERS:
                raise must_be(f"{where}{name}", f"at most {MAX_LAYERS:,}", layers)
    architectures = raw.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise must_be(f"{where}architectures", "a list of names of classes", architectures)
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    if dtype is not None and dtype not in DTYPES:
        raise must_be(f"{where}dtype", f"one of {', '.join(DTYPES)}", dtype)
    file = raw.get("transformers_weights")
    if file is not None and not (isinstance(file, str) and file and Path(file).name == file):
        raise must_be(f"{where}transformers_weights", "the name of a file in the same folder", file)
    check_values(raw, where)
    quantization = raw.get("quantization_config")
    if not isinstance(quantization, dict | None):
        raise must_be(f"{where}quantization_config", "an object", quantization)
    if quantization == {}:
        raise must_be(f"{where}quantization_config", "an object that names a quant_method, or left out", {})


def _find_floats(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Each float in a JSON value with its path, such as `rope_parameters.factor`."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, (dict, list)):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _find_floats(item, f"{path}.{name}" if path else str(name))


def check_values(raw: Mapping[str, Any], where: str) -> None:
    """Check special tokens, rotary embeddings and class labels, in nested configurations too.

    Args:
        raw: the contents of config.json.
        where: the beginning of the error.

    Raises:
        UserError: a value has another type.

    Example:
        >>> check_values({"eos_token_id": [1, 2]}, "In config.json, ")
    """
    inner = {f"{name}.": part for name, part in raw.items() if name.endswith("_config") and isinstance(part, dict)}
    for prefix, part in {"": raw, **inner}.items():
        for name, value in part.items():
            place = f"{where}{prefix}{name}"
            tokens = value if isinstance(value, list) else [value]
            if name.endswith("_token_id") and value is not None and not all(map(_is_integer, tokens)):
                raise must_be(place, "a whole number, a list of such, or null", value)
            if name == "is_encoder_decoder" and not isinstance(value, bool | None):
                raise must_be(place, "true or false", value)
            if name in ROPE:
                _check_rope(value, place)
            if name == "id2label" and isinstance(value, dict):
                for number in value:
                    if not str(number).isdecimal():
                        raise must_be(f"Each key of {place}", "the number of a class, like 0", number)
            if name == "label2id" and isinstance(value, dict):
                for label, number in value.items():
                    # Old files have the number as text.
                    if not (_is_integer(number) or str(number).isdecimal()):
                        raise must_be(f"{place}, {label},", "the number of a class", number)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_rope(value: object, place: str) -> None:
    """Check a mapping of numbers, or one such mapping for each layer type."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise must_be(place, "an object", value)
    for name, item in value.items():
        if name in ROPE_TYPES:
            if not isinstance(item, str):
                raise must_be(f"{place}.{name}", "the name of a kind of rotary embedding", item)
        elif isinstance(item, dict):
            _check_rope(item, f"{place}.{name}")
        elif not all(isinstance(number, int | float | None) for number in (item if isinstance(item, list) else [item])):
            raise must_be(f"{place}.{name}", "a number, or a list of numbers", item)


def _check_model_code(raw: Mapping[str, Any], source: str) -> None:
    """Check that transformers has each `model_type` in a configuration, and the class that was saved."""
    for part in _parts(raw):
        if part.get(AUTO_MAP) and part.get("model_type") not in CONFIG_MAPPING:
            raise _code_error(source, CONFIG, part[AUTO_MAP])
    saved = raw.get("architectures") or ()
    if raw.get(AUTO_MAP) and saved:
        config = CONFIG_MAPPING[raw["model_type"]]
        mappings = [mapping for _, _, mapping in auto_classes() if config in mapping]
        own = {model_class.__name__ for mapping in mappings for model_class in as_classes(mapping[config])}
        if saved[0] not in own:
            raise _code_error(source, CONFIG, raw[AUTO_MAP])


def check_tokenizer_code(raw: Mapping[str, Any], source: str) -> None:
    """Check that a tokenizer needs no custom code.

    Args:
        raw: the contents of tokenizer_config.json.
        source: the model, as errors name it.

    Raises:
        UserError: it names a class that transformers does not have.
    """
    code = raw.get(AUTO_MAP)
    code = code.get("AutoTokenizer") if isinstance(code, dict) else code
    tokenizer_class = raw.get("tokenizer_class")
    if code and not (isinstance(tokenizer_class, str) and tokenizer_class_from_name(tokenizer_class) is not None):
        raise _code_error(source, "tokenizer_config.json", code)


def warn_about_code(raw: Mapping[str, Any], source: str) -> None:
    """Warn that code is not run, if the contents `raw` of config.json name any."""
    if raw.get(AUTO_MAP):
        warnings.warn(
            f"The model '{source}' comes with custom code ({_class_names(raw[AUTO_MAP])}), which is not run: "
            f"transformers' own class for '{raw['model_type']}' is used.",
            CheckpointNotice,
            stacklevel=2,
        )


def _parts(raw: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration and those inside it."""
    yield raw
    for value in raw.values():
        if isinstance(value, dict):
            yield from _parts(value)


def _code_error(source: str, file: str, auto_map: object) -> UserError:
    return UserError(
        f"The model '{source}' needs custom code, which its {file} names under auto_map "
        f"({_class_names(auto_map)}), and laconic never runs code that comes with a model; use one whose classes "
        "transformers has itself."
    )


def _class_names(auto_map: object) -> str:
    """The classes that an `auto_map` names."""
    values = list(auto_map.values()) if isinstance(auto_map, dict) else auto_map
    entries = values if isinstance(values, (list, tuple)) else [values]
    names = [name for entry in entries for name in (entry if isinstance(entry, (list, tuple)) else [entry])]
    return ", ".join(dict.fromkeys(str(name) for name in names if name)) or "a class"
