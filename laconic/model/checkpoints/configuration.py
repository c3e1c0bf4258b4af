"""Read config.json; every mistake in it becomes one sentence.

Values that transformers does not check are checked here: special tokens, rotary embeddings, class labels, numbers of
layers. Each must have the type that all readers of the key expect.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from laconic.errors import UserError, must_be, quote, reason_of
from laconic.model.anatomy import find_entry
from laconic.model.checkpoints.code import check_model_code, remove_auto_map
from laconic.model.checkpoints.location import Location

ROPE = ("rope_parameters", "rope_scaling")
WORDS = ("rope_type", "type")
"""Keys of rotary embeddings whose values are text; all others are numbers, lists of numbers or booleans."""


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
            called = f"{where}{prefix}{name}"
            if name.endswith("_token_id") and not _are_tokens(value):
                raise must_be(called, "a whole number, a list of such, or null", value)
            if name == "is_encoder_decoder" and not isinstance(value, bool | None):
                raise must_be(called, "true or false", value)
            if name in ROPE:
                _check_rope(value, called)
            if name == "id2label" and isinstance(value, dict):
                for number in value:
                    if not str(number).isdecimal():
                        raise must_be(f"Each key of {called}", "the number of a class, like 0", number)
            if name == "label2id" and isinstance(value, dict):
                for label, number in value.items():
                    # Old files have it as text, which nobody minds.
                    if not (_is_whole(number) or str(number).isdecimal()):
                        raise must_be(f"{called}, {label},", "the number of a class", number)


def _are_tokens(value: object) -> bool:
    return value is None or all(map(_is_whole, value if isinstance(value, list) else [value]))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_rope(value: object, called: str) -> None:
    """Check a mapping of numbers, or one such mapping for each layer type."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise must_be(called, "an object", value)
    for name, one in value.items():
        if name in WORDS:
            if not isinstance(one, str):
                raise must_be(f"{called}.{name}", "the name of a kind of rotary embedding", one)
        elif isinstance(one, dict):
            _check_rope(one, f"{called}.{name}")
        elif not all(isinstance(number, int | float | None) for number in (one if isinstance(one, list) else [one])):
            raise must_be(f"{called}.{name}", "a number, or a list of numbers", one)


CONFIG = "config.json"
DEPTH = re.compile(r"(num|n)_(\w+_)?layers?|(encoder|decoder)_layers")
"""Names of how many blocks there are."""
MOST_LAYERS = 10_000
"""Several times as many as any model has; each takes memory before there is anything to check."""
DTYPES = ("float16", "bfloat16", "float32", "float64")
"""What plain weights are stored in."""
COMPUTED_BY = ("eager", "sdpa")
"""The implementations of attention that torch alone can run."""


def read_config(location: Location) -> PreTrainedConfig:
    """Read the configuration of a model, without mention of code that comes with it.

    Args:
        location: where its files are.

    Raises:
        UserError: config.json is missing or invalid, is of another library, or needs code of its own.
    """
    raw = location.json(CONFIG)
    if raw is not None:
        _check_raw(raw, location.source)
        # A plug-in registers its classes with transformers when it is imported.
        find_entry(raw.get("model_type") or "")
        check_model_code(raw, location.source)
    try:
        config = AutoConfig.from_pretrained(
            location.name,
            revision=location.revision,
            subfolder=location.subfolder,
            local_files_only=not location.downloads,
            trust_remote_code=False,
        )
    except StrictDataclassError as error:
        # A value of another kind than the class declares; its second line says which.
        raise UserError(_no_model(location.source, reason_of(error))) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        # Of a class that reads a list where a mapping stands, or divides by a number that is 0.
        said = reason_of(error).removeprefix(f"{type(error).__name__}: ")
        raise UserError(_no_model(location.source, f"{type(error).__name__}: {said}")) from error
    except (OSError, ValueError, ImportError) as error:
        if raw is not None:
            raise UserError(
                _no_architecture(raw, location.source) or _no_model(location.source, reason_of(error))
            ) from error
        raise UserError(
            f"There is no loadable model '{location.source}', neither as a folder nor on the hub: {reason_of(error)}."
        ) from error
    remove_auto_map(config)
    _forget_outputs(config)
    # One that needs a package, or is fetched from the hub as code, is a matter of speed alone.
    if config._attn_implementation not in COMPUTED_BY:
        config._attn_implementation = None
    return config


def _forget_outputs(config: PreTrainedConfig) -> None:
    """Reset what a forward pass returns beside its predictions; callers request what they need."""
    parts = (getattr(config, name, None) for name in config.sub_configs)
    for part in (config, *(part for part in parts if isinstance(part, PreTrainedConfig))):
        part.return_dict = True
        part.output_attentions = part.output_hidden_states = False


def _no_model(source: str, reason: str) -> str:
    return f"The config.json of '{source}' describes no model: {reason}; take the one saved with the weights."


def _no_architecture(raw: dict[str, Any], source: str) -> str | None:
    """What is wrong with the architecture that `raw` names; None where transformers has it."""
    named = raw.get("model_type")
    if not named:
        return (
            f"The config.json of '{source}' does not say model_type, the name of an architecture; take the one saved "
            "with the weights."
        )
    if named in CONFIG_MAPPING:
        return None
    return (
        f"The config.json of '{source}' names the architecture {quote(named)}, which transformers "
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
        # An infinity may be meant (of a step without a limit); this is a number that no sum has survived.
        if math.isnan(value):
            raise must_be(f"{where}{name}", "a number", value)
    if not isinstance(raw.get("model_type") or "", str):
        raise must_be(f"{where}model_type", "the name of an architecture", raw["model_type"])
    for part in (raw, *(value for name, value in raw.items() if name.endswith("_config") and isinstance(value, dict))):
        for name, layers in part.items():
            if DEPTH.fullmatch(name) and isinstance(layers, int) and layers > MOST_LAYERS:
                raise must_be(f"{where}{name}", f"at most {MOST_LAYERS:,}", layers)
    saved = raw.get("architectures")
    if saved is not None and not (isinstance(saved, list) and all(isinstance(name, str) for name in saved)):
        raise must_be(f"{where}architectures", "a list of names of classes", saved)
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    if dtype is not None and dtype not in DTYPES:
        raise must_be(f"{where}dtype", f"one of {', '.join(DTYPES)}", dtype)
    named = raw.get("transformers_weights")
    if named is not None and not (isinstance(named, str) and named and Path(named).name == named):
        raise must_be(f"{where}transformers_weights", "the name of a file in the same folder", named)
    check_values(raw, where)
    if not isinstance(raw.get("quantization_config"), dict | None):
        raise must_be(f"{where}quantization_config", "an object", raw["quantization_config"])
    if raw.get("quantization_config") == {}:
        raise must_be(f"{where}quantization_config", "an object that names a quant_method, or left out", {})


def _find_floats(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Each float in a JSON value with its path, as `rope_parameters.factor`."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, (dict, list)):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _find_floats(item, f"{path}.{name}" if path else str(name))
