"""config.json, read so that each mistake in it is one sentence."""

import math
import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from laconic.errors import UserError, must_be, reason_of
from laconic.model.checkpoints.code import check_model_code, forget_code
from laconic.model.checkpoints.place import Place
from laconic.model.checkpoints.values import check_values

CONFIG = "config.json"
DEPTH = re.compile(r"(num|n)_(\w+_)?layers?|(encoder|decoder)_layers")
"""Names of how many blocks there are."""
MOST_LAYERS = 10_000
"""Several times as many as any model has; each takes memory before there is anything to check."""
DTYPES = ("float16", "bfloat16", "float32", "float64")
"""What plain weights are stored in."""
COMPUTED_BY = ("eager", "sdpa")
"""The implementations of attention that torch alone can run."""


def read_config(place: Place) -> PreTrainedConfig:
    """The configuration of the model at `place`, without mention of code that lies beside it.

    Raises:
        UserError: config.json is missing or no configuration, is of another library, or needs code of its own.
    """
    raw = place.json(CONFIG)
    if raw is not None:
        _check_raw(raw, place.source)
        check_model_code(raw, place.source)
    try:
        config = AutoConfig.from_pretrained(
            place.name,
            revision=place.revision,
            subfolder=place.subfolder,
            local_files_only=not place.fetches,
            trust_remote_code=False,
        )
    except StrictDataclassError as error:
        # A value of another kind than the class declares; its second line says which.
        said = reason_of(error)
        raise UserError(
            f"The config.json of '{place.source}' describes no model: {said}; take the one saved with the weights."
        ) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        # Of a class that reads a list where a mapping stands, or divides by a number that is 0.
        raise UserError(
            f"The config.json of '{place.source}' describes no model: {type(error).__name__}: {reason_of(error)}; take "
            "the one saved with the weights."
        ) from error
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"There is no loadable model '{place.source}', neither as a folder nor on the hub: {reason_of(error)}."
        ) from error
    forget_code(config)
    # One that needs a package, or is fetched from the hub as code, is a matter of speed alone.
    if config._attn_implementation not in COMPUTED_BY:
        config._attn_implementation = None
    return config


def _check_raw(raw: dict[str, Any], source: str) -> None:
    if "model_type" not in raw and any(key.startswith("_diffusers") or key == "_class_name" for key in raw):
        raise UserError(
            f"The folder '{source}' holds a part of a diffusers pipeline and no language model; "
            "give a folder saved by save_pretrained of a transformers model."
        )
    where = f"In the config.json of '{source}', "
    for name, value in _numbers(raw):
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
    check_values(raw, where)
    if not isinstance(raw.get("quantization_config"), dict | None):
        raise must_be(f"{where}quantization_config", "an object", raw["quantization_config"])


def _numbers(said: object, place: str = "") -> Iterator[tuple[str, float]]:
    """Each number with a point in what was read, and where it stands, as `rope_parameters.factor`."""
    if isinstance(said, float):
        yield place, said
    elif isinstance(said, (dict, list)):
        for name, value in said.items() if isinstance(said, dict) else enumerate(said):
            yield from _numbers(value, f"{place}.{name}" if place else str(name))
