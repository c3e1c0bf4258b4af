"""The model classes of the sweep: tiny, with random weights, each built from its configuration.

A configuration gets those of `SIZES` that it has a field for, and the settings of its row.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from benchmarks.architectures.rows import ROWS
from benchmarks.architectures.sizes import NESTED, SIZES
from laconic.testing.models import randomize


@dataclass(frozen=True)
class ModelClass:
    """A class of transformers with the settings of one configuration.

    Args:
        group: the heading of its table.
        label: the name of the class, and after a comma the form of the configuration if there are several.
        settings: the settings of the configuration besides `SIZES`.
    """

    group: str
    label: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.label.partition(",")[0]

    @property
    def has_experts(self) -> bool:
        """Whether the class belongs to the mixtures of experts."""
        return "experts" in f"{self.group} {self.label}"

    def build(self) -> PreTrainedModel:
        """The model, with weights that all affect its outputs."""
        kind = getattr(transformers, self.name)
        # Some classes draw parameters that `randomize` leaves as they are.
        torch.manual_seed(0)
        return randomize(kind(small_config(kind.config_class, **self.settings)))


def small_config(kind: type[PreTrainedConfig], **settings: Any) -> PreTrainedConfig:
    """A configuration of tiny sizes.

    Args:
        kind: its class.
        settings: other settings; for a nested configuration, a mapping of its settings.
    """
    names = {field.name for field in dataclasses.fields(kind)} | kind.attribute_map.keys()
    values = {name: size for name, size in SIZES.items() if name in names}
    for name, value in settings.items():
        values[name] = _nested(kind, name, value) if name in NESTED else value
    return kind(**values)


def _nested(kind: type[PreTrainedConfig], name: str, settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of a part; its class is that of the whole's default, or of the `model_type` that is set."""
    others = dict(settings)
    named = others.pop("model_type", None)
    sub_configs: Any = kind.sub_configs
    part = sub_configs[name] if named is None else type(transformers.AutoConfig.for_model(named))
    return small_config(part, **others)


def model_classes() -> Iterator[ModelClass]:
    """Every class of the sweep, in the order of the tables."""
    for group, rows in ROWS.items():
        for label, settings in rows.items():
            yield ModelClass(group, label, settings)
