"""A folder saved by `save_pretrained`, or a repository of the hub with the same files."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import CheckpointNotice, UserError, reason_of
from laconic.model.checkpoints.adapter import ADAPTER_CONFIG
from laconic.model.checkpoints.checkpoint import Checkpoint, check_tokenizer
from laconic.model.checkpoints.code import warn_about_code
from laconic.model.checkpoints.configuration import CONFIG, read_config
from laconic.model.checkpoints.fit import check_fit
from laconic.model.checkpoints.location import Location
from laconic.model.checkpoints.quantized import check_quantization, check_quantized_tensors, load_dequantized
from laconic.model.checkpoints.report import check_report
from laconic.model.checkpoints.shards import MissingWeightsError
from laconic.model.checkpoints.weights import check_weights, find_weights
from laconic.model.stock import MODEL_ERRORS
from laconic.model.task import find_auto_class, text_encoder_class_name
from laconic.plugin import QUANT_METHOD

NOWHERE = "no-adapter-is-meant"
"""A folder that is in no model's: transformers looks there for an adapter, and loads none on top."""


@dataclass(frozen=True, kw_only=True)
class Stored(Checkpoint):
    """A model whose config.json lies beside its weights."""

    @property
    def has_weights(self) -> bool:
        return self.place.folder is None or find_weights(self.place) is not None

    def config(self) -> PreTrainedConfig:
        config = read_config(self.place)
        if self._codes is not None:
            check_quantization(self._codes, self.source)
            for one in (config, config.get_text_config()):
                vars(one).pop("quantization_config", None)
        if self.declared is not None and self.declared.embeds:
            # Whatever class it was saved from, vectors are made by the plain encoder.
            config.architectures = [text_encoder_class_name(config, self.source)]
        return config

    def check(self, config: PreTrainedConfig, given: Collection[str] = ()) -> None:
        try:
            weights = check_weights(self.place.on_this_machine(), config)
            if self._codes is None:
                check_fit(weights, config, self.source, given)
            else:
                check_quantized_tensors(config, weights, self._codes, self.source, given)
        except MissingWeightsError:
            # What the hub is still to be asked for is looked at when it is loaded.
            if self.place.folder is not None or not self.place.fetches:
                raise
        if self.place.folder is not None and self.declared is not None:
            # What is behind a transformer is small.
            self.declared.load()
        check_tokenizer(self.place)

    def load(self, config: PreTrainedConfig, given: Collection[str] = ()) -> PreTrainedModel:
        warn_about_code(self.place.json(CONFIG) or {}, self.source)
        if self.place.file(ADAPTER_CONFIG) is not None:
            warnings.warn(
                f"'{self.source}' holds a model and an adapter for it: the model is read without the adapter. "
                "To merge them, put the adapter into a folder of its own and give that.",
                CheckpointNotice,
                stacklevel=2,
            )
        if self._codes is not None:
            model = load_dequantized(config, check_weights(self.place, config), self._codes, self.source, given)
            model.config.name_or_path = self.place.name
            return model
        return read_weights(self.place, config, given)

    @cached_property
    def _codes(self) -> dict[str, Any] | None:
        """The `quantization_config` of another library; None where the weights are numbers, or formats of laconic."""
        raw = self.place.json(CONFIG) or {}
        inner = raw.get("text_config")
        said = raw.get("quantization_config") or (inner.get("quantization_config") if isinstance(inner, dict) else None)
        return said if isinstance(said, dict) and said and said.get("quant_method") != QUANT_METHOD else None

    def stored_dtype(self, config: PreTrainedConfig) -> torch.dtype:
        if isinstance(config.dtype, torch.dtype):
            return config.dtype
        return check_weights(self.place, config).dtype()


def read_weights(place: Location, config: PreTrainedConfig, given: Collection[str] = (), **how: Any) -> PreTrainedModel:
    """The model that `config` describes in float32, with every tensor from the files at `place`, and all of those.

    given: names of tensors that come from elsewhere and may be missing.
    how:   what else `from_pretrained` has to be told.

    Raises:
        UserError: a file cannot be read, or a tensor is missing, left over or of another shape.
    """
    weights = check_weights(place, config)
    kind: Any = find_auto_class(config, config.architectures or ())
    try:
        # A pooler that is not in the file is drawn, the same at every loading.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, report = kind.from_pretrained(
                # Of a repository, too, the folder: given its name, transformers asks the hub to convert its pickles.
                str(weights.folder),
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=weights.are_safe,
                weights_only=True,
                adapter_kwargs={"subfolder": NOWHERE},
                output_loading_info=True,
                # Mismatches are gathered, to be named below.
                ignore_mismatched_sizes=True,
                **how,
            )
    except UserError:
        raise
    except (OSError, SafetensorError, *MODEL_ERRORS) as error:
        raise UserError(
            f"The weights of '{place.source}' cannot be loaded: {reason_of(error)}; use files that were saved together."
        ) from error
    check_report(model, report, place.source, weights.whole_numbers, given)
    model.config.name_or_path = place.name
    return model
