"""An adapter trained by peft (adapter_config.json and its tensors), merged into its base model.

peft adds the tensors of LoRA, and of every other adapter that changes matrices, to them. Before the merged model is
used, its outputs for a few tokens are compared with those of the model and the adapter side by side.
"""

import copy
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto as auto

from laconic.errors import UserError, must_be, reason_of
from laconic.files import expand_user
from laconic.model.checkpoints.checkpoint import Checkpoint, check_tokenizer, read_tokenizer, require_package
from laconic.model.checkpoints.fit import build_outline
from laconic.model.checkpoints.location import Location
from laconic.model.checkpoints.merging import merge_adapter, untie_adapted
from laconic.model.checkpoints.sentences import EmbeddingConfig
from laconic.model.checkpoints.weights import check_file, read_headers
from laconic.model.stock import MODEL_ERRORS
from laconic.model.task import as_classes, text_encoder_class_name

ADAPTER_CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
"""Of the names in an adapter's file that are names of the model's."""
EMBEDS = "FEATURE_EXTRACTION"
_MAPPINGS: Mapping[str, Any] = {
    "SEQ_CLS": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "CAUSAL_LM": auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "SEQ_2_SEQ_LM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    EMBEDS: auto.MODEL_MAPPING,
}
"""peft's names of tasks, and the classes that can do each."""
_BESIDE_MATRICES = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
                    "ADAPTION_PROMPT", "XLORA", "POLY", "SHADOW")  # fmt: skip
"""Kinds of adapter that change what the model reads, or which adapter it takes, and no matrix."""


@dataclass(frozen=True, kw_only=True)
class Adapter(Checkpoint):
    """A model with the adapter at `location` merged into it.

    Args:
        base: the model that the adapter was trained on.
    """

    base: Checkpoint

    def config(self) -> PreTrainedConfig:
        config = self._of_base()
        outline = build_outline(config, self.source)
        for name, shape in self._shapes.items():
            if name in _embeddings(outline) and shape[0] != outline.get_parameter(name).shape[0]:
                config.get_text_config().vocab_size = shape[0]
        return config

    def check(self, config: PreTrainedConfig, given: Collection[str] = ()) -> None:
        require_package("peft", f"The adapter '{self.source}'", extra="train", least="0.17")
        self.base.check(self._of_base(), given=self._shapes.keys())
        check_tokenizer(self.location)

    def load(self, config: PreTrainedConfig, given: Collection[str] = ()) -> PreTrainedModel:
        model = self.base.load(self._of_base(), given=self._shapes.keys())
        rows = config.get_text_config().vocab_size
        if rows != model.config.get_text_config().vocab_size:
            model.resize_token_embeddings(rows, mean_resizing=False)
        beside = self._put_beside(model)
        try:
            untie_adapted(beside)
            model = merge_adapter(beside, self.source)
        except UserError:
            raise
        except MODEL_ERRORS as error:
            raise UserError(
                f"The adapter '{self.source}' cannot be merged into its model: {reason_of(error)}; "
                "give a model without it."
            ) from error
        model.config.name_or_path = self.location.name
        return model

    def stored_dtype(self, config: PreTrainedConfig) -> torch.dtype:
        return self.base.stored_dtype(config)

    def tokenizers(
        self, own: PreTrainedTokenizerBase | None = None
    ) -> tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
        beside = read_tokenizer(self.location) if own is None else own
        found, target = self.base.tokenizers(beside)
        return (self.apply_lower_case(found) if own is None else own), target

    def _of_base(self) -> PreTrainedConfig:
        """The configuration of the base model, with the class and as many outputs as the adapter is for."""
        said = self._said
        config = copy.deepcopy(self.base.config())
        _check_kind(said, self.source)
        if self.embedding_config is not None and self.embedding_config.embeds:
            config.architectures = [text_encoder_class_name(config, self.source)]
        else:
            config.architectures = [_class_for(said.get("task_type"), config, self.source)]
        if said.get("task_type") == "SEQ_CLS":
            _count_labels(config, self._shapes, self.source)
        return config

    @cached_property
    def _said(self) -> dict[str, Any]:
        return self.location.json(ADAPTER_CONFIG) or {}

    @cached_property
    def _file(self) -> Path:
        """The file of its tensors, which is whole and needs no code."""
        found = next((file for name in FILES if (file := self.location.file(name)) is not None), None)
        if found is None:
            raise UserError(f"The adapter '{self.source}' has no {' or '.join(FILES)}; use a complete one.")
        check_file(found, found.suffix == ".safetensors", self.source)
        return found

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors in its file, by their names in the model where they are the model's."""
        headers = read_headers(self._file, self._file.suffix == ".safetensors")
        return {name.removeprefix(PREFIX): header.shape for name, header in headers.items()}

    def _put_beside(self, model: PreTrainedModel) -> Any:
        """The model with the adapter unmerged, as peft runs it; every tensor of the adapter must be used."""
        peft: Any = import_module("peft")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                beside = peft.PeftModel(model, peft.PeftConfig.from_pretrained(str(self._file.parent)))
                mapping = getattr(model, "_checkpoint_conversion_mapping", None)
                report = beside.load_adapter(str(self._file.parent), "default", torch_device="cpu", key_mapping=mapping)
            except MODEL_ERRORS as error:
                raise UserError(
                    f"The adapter '{self.source}' does not fit the model '{self.base.source}': "
                    f"{reason_of(error)}; use the model that it was trained on, and a peft no older than its own."
                ) from error
        ignored = [str(one.message) for one in told if "Unexpected keyword arguments" in str(one.message)]
        if ignored:
            raise UserError(
                f"The adapter '{self.source}' is of a later peft than is installed: {ignored[0].rstrip('.')}; "
                "upgrade peft."
            )
        if left := sorted((*report.missing_keys, *report.unexpected_keys)):
            raise UserError(
                f"The adapter '{self.source}' does not fit the model '{self.base.source}': {len(left)} of its "
                f"tensors have no counterpart, the first is '{left[0]}'; use the model that it was trained on."
            )
        return beside.eval()


def read_base_name(location: Location) -> tuple[str, str | None]:
    """Read the name and the revision of the model that an adapter was trained on.

    A relative path is looked up from the working directory, as peft does, and then from the adapter's folder.

    Raises:
        UserError: none is named, or a path where nothing is.
    """
    said = location.json(ADAPTER_CONFIG) or {}
    name, revision = said.get("base_model_name_or_path"), said.get("revision")
    where = f"In the adapter_config.json of '{location.source}', "
    if not isinstance(name, str) or not name:
        raise must_be(f"{where}base_model_name_or_path", "a folder or a hub name", name)
    if not isinstance(revision, (str, type(None))):
        raise must_be(f"{where}revision", "a branch, tag or commit", revision)
    path = expand_user(name)
    beside = path if location.folder is None else location.folder / path
    there = next((one for one in (path, beside) if one.exists()), None)
    if there is None and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise UserError(
            f"The adapter '{location.source}' is of the model '{name}', and there is none; "
            "write where it lies to base_model_name_or_path in its adapter_config.json."
        )
    return (name if there is None else str(there)), revision or None


def keep_embedding_config(location: Location, found: EmbeddingConfig | None) -> EmbeddingConfig | None:
    """The sentence-transformers modules of a model that are still valid with an adapter; None for others."""
    task = (location.json(ADAPTER_CONFIG) or {}).get("task_type")
    # With a head on it, a model makes no vectors.
    return None if found is not None and found.embeds and task not in (None, EMBEDS) else found


def _check_kind(said: Mapping[str, Any], source: str) -> None:
    kind = said.get("peft_type")
    if not isinstance(kind, str):
        raise must_be(f"In the adapter_config.json of '{source}', peft_type", "the name of a kind of adapter", kind)
    if kind in _BESIDE_MATRICES:
        raise UserError(
            f"The adapter '{source}' is of the kind {kind}, which changes no matrix, so it cannot be merged into its "
            "model; give the model without it, or an adapter like LoRA."
        )


def _class_for(task: object, config: PreTrainedConfig, source: str) -> str:
    """The name of the class that the adapter was trained with: that of its base, where this can do the task."""
    own = config.architectures[0] if config.architectures else None
    if task is None and own is not None:
        return own
    mapping: Any = _MAPPINGS.get(str(task)) if task is not None else auto.MODEL_MAPPING
    if mapping is None or type(config) not in mapping:
        raise UserError(
            f"The adapter '{source}' is for the task {task}, which is not supported for the architecture "
            f"'{config.model_type}'; supported are {', '.join(_MAPPINGS)}."
        )
    able = [kind.__name__ for kind in as_classes(mapping[type(config)])]
    return own if own in able else able[0]


def _count_labels(config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Set the number of labels in `config` to the rows of the head in the adapter's file."""
    outline = build_outline(config, source)
    for name, parameter in outline.named_parameters():
        if name.startswith(f"{outline.base_model_prefix}.") or name not in shapes or parameter.dim() != 2:
            continue
        if shapes[name][0] != parameter.shape[0] == config.num_labels:
            config.num_labels = shapes[name][0]


def _embeddings(model: PreTrainedModel) -> set[str]:
    """The names of the matrices with one row per token."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    named: dict[Any, str] = {module: name for name, module in model.named_modules()}
    return {f"{named[module]}.weight" for module in modules if module is not None}
