"""Load a folder saved by `save_pretrained`, or a repository of the hub with the same files."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import CheckpointNotice, UserError, reason_of
from laconic.imports import QUANT_METHOD
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

NO_ADAPTER = "no-adapter-is-meant"
"""A subfolder that no model has: transformers looks for an adapter there, and so applies none."""


@dataclass(frozen=True, kw_only=True)
class Stored(Checkpoint):
    """A folder saved by `save_pretrained`, or a hub repository with the same files."""

    @property
    def has_weights(self) -> bool:
        return self.location.folder is None or find_weights(self.location) is not None

    def config(self) -> PreTrainedConfig:
        config = read_config(self.location)
        if self._quantization is not None:
            check_quantization(self._quantization, self.source)
            for part in (config, config.get_text_config()):
                vars(part).pop("quantization_config", None)
        if self.embedding_config is not None and self.embedding_config.embeds:
            # sentence-transformers loads the plain encoder, whatever class was saved.
            config.architectures = [text_encoder_class_name(config, self.source)]
        return config

    def check(self, config: PreTrainedConfig, given: Collection[str] = ()) -> None:
        try:
            weights = check_weights(self.location.without_download(), config)
            if self._quantization is None:
                check_fit(weights, config, self.source, given)
            else:
                check_quantized_tensors(config, weights, self._quantization, self.source, given)
        except MissingWeightsError:
            # Weights that are still to be downloaded are checked when they are loaded.
            if self.location.folder is not None or not self.location.downloads:
                raise
        if self.location.folder is not None and self.embedding_config is not None:
            # These modules are small.
            self.embedding_config.load()
        check_tokenizer(self.location)

    def load(self, config: PreTrainedConfig, given: Collection[str] = ()) -> PreTrainedModel:
        warn_about_code(self.location.json(CONFIG) or {}, self.source)
        if self.location.file(ADAPTER_CONFIG) is not None:
            warnings.warn(
                f"'{self.source}' holds a model and an adapter for it: the model is read without the adapter. "
                "To merge them, put the adapter into a folder of its own and give that.",
                CheckpointNotice,
                stacklevel=2,
            )
        if self._quantization is not None:
            model = load_dequantized(
                config, check_weights(self.location, config), self._quantization, self.source, given
            )
            model.config.name_or_path = self.location.name
            return model
        return read_weights(self.location, config, given)

    @cached_property
    def _quantization(self) -> dict[str, Any] | None:
        """The `quantization_config` of another library; None for plain weights and those that laconic compressed."""
        raw = self.location.json(CONFIG) or {}
        inner = raw.get("text_config")
        said = raw.get("quantization_config") or (inner.get("quantization_config") if isinstance(inner, dict) else None)
        return said if isinstance(said, dict) and said and said.get("quant_method") != QUANT_METHOD else None

    def stored_dtype(self, config: PreTrainedConfig) -> torch.dtype:
        if isinstance(config.dtype, torch.dtype):
            return config.dtype
        return check_weights(self.location, config).dtype()


def read_weights(
    location: Location, config: PreTrainedConfig, given: Collection[str] = (), **options: Any
) -> PreTrainedModel:
    """Load a model in float32; every tensor of the files must be used, and every parameter must be in them.

    Args:
        location: where the files are.
        config: the configuration of the model.
        given: names of tensors that come from elsewhere and may be missing.
        **options: further arguments of `from_pretrained`.

    Raises:
        UserError: a file cannot be read, or a tensor is missing, left over or of another shape.
    """
    weights = check_weights(location, config)
    auto_class: Any = find_auto_class(config, config.architectures or ())
    try:
        # A pooler that is not in the file is drawn at random, the same at every loading.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, report = auto_class.from_pretrained(
                # The folder even for a repository: given its name, transformers asks the hub to convert its pickles.
                str(weights.folder),
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=weights.are_safe,
                weights_only=True,
                adapter_kwargs={"subfolder": NO_ADAPTER},
                output_loading_info=True,
                # check_report names mismatches.
                ignore_mismatched_sizes=True,
                **options,
            )
    except UserError:
        raise
    except (OSError, SafetensorError, *MODEL_ERRORS) as error:
        raise UserError(
            f"The weights of '{location.source}' cannot be loaded: {reason_of(error)}; "
            "use files that were saved together."
        ) from error
    check_report(model, report, location.source, weights.whole_numbers, given)
    model.config.name_or_path = location.name
    return model
