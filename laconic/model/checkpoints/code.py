"""Code that comes with a model: it is never run.

A repository can name classes of its own under `auto_map` in config.json or tokenizer_config.json, which transformers
runs with `trust_remote_code`. Where transformers has the class itself, that one is used and a notice says so; otherwise
the model is refused.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from laconic.errors import CheckpointNotice, UserError
from laconic.model.task import as_classes, auto_classes

AUTO_MAP = "auto_map"


def check_model_code(raw: Mapping[str, Any], source: str) -> None:
    """Check that a model needs no code of its own.

    It needs none where transformers has each `model_type` in its configuration, and the class that was saved.

    Args:
        raw: the contents of config.json.
        source: the model, as errors name it.

    Raises:
        UserError: it needs code.
    """
    for part in _parts(raw):
        if part.get(AUTO_MAP) and part.get("model_type") not in CONFIG_MAPPING:
            raise _refused(source, "config.json", part[AUTO_MAP])
    saved = raw.get("architectures") or ()
    if raw.get(AUTO_MAP) and saved and saved[0] not in _own_classes(raw["model_type"]):
        raise _refused(source, "config.json", raw[AUTO_MAP])


def check_tokenizer_code(raw: Mapping[str, Any], source: str) -> None:
    """Check that a tokenizer needs no code of its own.

    Args:
        raw: the contents of tokenizer_config.json.
        source: the model, as errors name it.

    Raises:
        UserError: it names a class that transformers does not have.
    """
    named = raw.get(AUTO_MAP)
    named = named.get("AutoTokenizer") if isinstance(named, dict) else named
    own = raw.get("tokenizer_class")
    if named and not (isinstance(own, str) and tokenizer_class_from_name(own) is not None):
        raise _refused(source, "tokenizer_config.json", named)


def remove_auto_map(config: PreTrainedConfig) -> None:
    """Remove every mention of code from `config`, so that what is saved with it refers to none."""
    vars(config).pop(AUTO_MAP, None)
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            remove_auto_map(inner)


def warn_about_code(raw: Mapping[str, Any], source: str) -> None:
    """Warn that code is not run, where the contents `raw` of config.json name any."""
    if raw.get(AUTO_MAP):
        warnings.warn(
            f"The model '{source}' comes with code of its own ({_spelled(raw[AUTO_MAP])}), which is not run: "
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


def _own_classes(model_type: str) -> set[str]:
    """The names of transformers' classes of an architecture that laconic can take."""
    config = CONFIG_MAPPING[model_type]
    mappings = [mapping for _, _, mapping in auto_classes() if config in mapping]
    return {kind.__name__ for mapping in mappings for kind in as_classes(mapping[config])}


def _refused(source: str, file: str, named: object) -> UserError:
    return UserError(
        f"The model '{source}' needs code of its own, which its {file} names under auto_map ({_spelled(named)}), and "
        "laconic never runs code that comes with a model; use one whose classes transformers has itself."
    )


def _spelled(named: object) -> str:
    """The classes that an `auto_map` names."""
    several = named.values() if isinstance(named, dict) else named if isinstance(named, (list, tuple)) else [named]
    flat = [one for entry in several for one in (entry if isinstance(entry, (list, tuple)) else [entry])]
    return ", ".join(dict.fromkeys(str(one) for one in flat if one)) or "a class"
