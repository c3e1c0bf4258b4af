"""An adapter trained by peft (adapter_config.json and its tensors), merged into its base model.

Before the merged model is used, its outputs for a few tokens are compared with those of model and adapter unmerged.
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
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from laconic.errors import UserError, must_be, reason_of
from laconic.files import expand_user
from laconic.model.checkpoints.checkpoint import (
    Checkpoint,
    Tokenizers,
    check_tokenizer,
    read_tokenizer,
    require_package,
)
from laconic.model.checkpoints.fit import build_outline
from laconic.model.checkpoints.location import Location
from laconic.model.checkpoints.sentences import EmbeddingConfig
from laconic.model.checkpoints.weights import check_file, read_headers
from laconic.model.enumeration import untie
from laconic.model.stock import MODEL_ERRORS
from laconic.model.task import AUTO_CLASSES, ModelTask, as_classes, text_encoder_class_name

ADAPTER_CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
"""The prefix that peft puts before the names of the model's own tensors."""
EMBEDS = "FEATURE_EXTRACTION"
_MAPPINGS: Mapping[str, Any] = {
    "SEQ_CLS": AUTO_CLASSES[ModelTask.CLASSIFICATION][1],
    "TOKEN_CLS": AUTO_CLASSES[ModelTask.TOKEN_CLASSIFICATION][1],
    "QUESTION_ANS": AUTO_CLASSES[ModelTask.QUESTION_ANSWERING][1],
    "CAUSAL_LM": AUTO_CLASSES[ModelTask.CAUSAL][1],
    "SEQ_2_SEQ_LM": AUTO_CLASSES[ModelTask.SEQ2SEQ][1],
    EMBEDS: AUTO_CLASSES[ModelTask.EMBEDDING][1],
}
"""The classes for each of peft's tasks."""
_NOT_MERGEABLE = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
                  "ADAPTION_PROMPT", "XLORA", "POLY", "SHADOW")  # fmt: skip
"""Kinds of adapter that change the inputs of the model, or select other adapters, and change no matrix."""
TOKENS = 8
TOLERANCE = 1e-3
"""The largest accepted difference relative to the largest output; float32 sums in another order differ by less."""


@dataclass(frozen=True, kw_only=True)
class Adapter(Checkpoint):
    """A model with the adapter at `location` merged into it.

    Args:
        base: the model that the adapter was trained on.
    """

    base: Checkpoint

    def config(self) -> PreTrainedConfig:
        config = self._base_config()
        outline = build_outline(config, self.source)
        embeddings = {outline.get_input_embeddings(), outline.get_output_embeddings()}
        for name, module in outline.named_modules():
            shape = self._shapes.get(f"{name}.weight")
            if module in embeddings and shape is not None and shape[0] != module.get_parameter("weight").shape[0]:
                config.get_text_config().vocab_size = shape[0]
        return config

    def check(self, config: PreTrainedConfig, external_names: Collection[str] = ()) -> None:
        require_package("peft", f"The adapter '{self.source}'", extra="train", min_version="0.17")
        self.base.check(self._base_config(), self._shapes.keys())
        check_tokenizer(self.location)

    def load(self, config: PreTrainedConfig, external_names: Collection[str] = ()) -> PreTrainedModel:
        model = self.base.load(self._base_config(), self._shapes.keys())
        rows = config.get_text_config().vocab_size
        if rows != model.config.get_text_config().vocab_size:
            model.resize_token_embeddings(rows, mean_resizing=False)
        peft_model = self._load_unmerged(model)
        try:
            _untie_adapted(peft_model)
            model = _merge(peft_model, self.source)
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

    def tokenizers(self, own: PreTrainedTokenizerBase | None = None) -> Tokenizers:
        tokenizer, target = self.base.tokenizers(read_tokenizer(self.location) if own is None else own)
        return (self.apply_lower_case(tokenizer) if own is None else own), target

    def _base_config(self) -> PreTrainedConfig:
        """The configuration of the base model, with the class and the number of outputs that the adapter is for."""
        kind, task = self._settings.get("peft_type"), self._settings.get("task_type")
        config = copy.deepcopy(self.base.config())
        if not isinstance(kind, str):
            place = f"In the adapter_config.json of '{self.source}', peft_type"
            raise must_be(place, "the name of a kind of adapter", kind)
        if kind in _NOT_MERGEABLE:
            raise UserError(
                f"The adapter '{self.source}' is of the kind {kind}, which changes no matrix, so it cannot be merged "
                "into its model; give the model without it, or an adapter like LoRA."
            )
        if self.embedding_config is not None and self.embedding_config.embeds:
            config.architectures = [text_encoder_class_name(config, self.source)]
        else:
            config.architectures = [_class_for(task, config, self.source)]
        if task in ("SEQ_CLS", "TOKEN_CLS"):
            _set_label_count(config, self._shapes, self.source)
        return config

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return self.location.json(ADAPTER_CONFIG) or {}

    @cached_property
    def _file(self) -> Path:
        """The file of its tensors, after a check that it is whole and needs no code."""
        file = next((file for name in FILES if (file := self.location.file(name)) is not None), None)
        if file is None:
            raise UserError(f"The adapter '{self.source}' has no {' or '.join(FILES)}; use a complete one.")
        check_file(file, file.suffix == ".safetensors", self.source)
        return file

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors in its file; tensors of the model itself have their names in the model."""
        headers = read_headers(self._file, self._file.suffix == ".safetensors")
        return {name.removeprefix(PREFIX): header.shape for name, header in headers.items()}

    def _load_unmerged(self, model: PreTrainedModel) -> Any:
        """The model with the unmerged adapter, as a PeftModel, after a check that every tensor is used."""
        peft: Any = import_module("peft")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                peft_model = peft.PeftModel(model, peft.PeftConfig.from_pretrained(str(self._file.parent)))
                mapping = getattr(model, "_checkpoint_conversion_mapping", None)
                report = peft_model.load_adapter(
                    str(self._file.parent), "default", torch_device="cpu", key_mapping=mapping
                )
            except MODEL_ERRORS as error:
                raise UserError(
                    f"The adapter '{self.source}' does not fit the model '{self.base.source}': "
                    f"{reason_of(error)}; use the model that it was trained on, and a peft that is not older than the "
                    "one that saved it."
                ) from error
        messages = [str(warning.message) for warning in caught]
        if ignored := [message for message in messages if "Unexpected keyword arguments" in message]:
            raise UserError(
                f"The adapter '{self.source}' was saved by a later peft than is installed: {ignored[0].rstrip('.')}; "
                "upgrade peft."
            )
        if unused := sorted((*report.missing_keys, *report.unexpected_keys)):
            raise UserError(
                f"The adapter '{self.source}' does not fit the model '{self.base.source}': {len(unused)} of its "
                f"tensors have no counterpart, the first is '{unused[0]}'; use the model that it was trained on."
            )
        return peft_model.eval()


def read_base_name(location: Location) -> tuple[str, str | None]:
    """Read the name and the revision of the model that an adapter was trained on.

    A relative path is looked up from the working directory, as peft does, and then from the adapter's folder.

    Raises:
        UserError: no name is given, or it is a path that does not exist.
    """
    settings = location.json(ADAPTER_CONFIG) or {}
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    where = f"In the adapter_config.json of '{location.source}', "
    if not isinstance(name, str) or not name:
        raise must_be(f"{where}base_model_name_or_path", "a folder or a hub name", name)
    if not isinstance(revision, (str, type(None))):
        raise must_be(f"{where}revision", "a branch, tag or commit", revision)
    path = expand_user(name)
    candidates = (path, path if location.folder is None else location.folder / path)
    folder = next((candidate for candidate in candidates if candidate.exists()), None)
    if folder is None and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise UserError(
            f"The adapter '{location.source}' was trained on the model '{name}', which does not exist; "
            "write the path of that model to base_model_name_or_path in its adapter_config.json."
        )
    return (name if folder is None else str(folder)), revision or None


def keep_embedding_config(location: Location, config: EmbeddingConfig | None) -> EmbeddingConfig | None:
    """The sentence-transformers modules of a base model if an adapter keeps them valid, else None."""
    task = (location.json(ADAPTER_CONFIG) or {}).get("task_type")
    # A model with a head makes no vectors.
    return None if config is not None and config.embeds and task not in (None, EMBEDS) else config


def _class_for(task: object, config: PreTrainedConfig, source: str) -> str:
    """The name of the class that the adapter was trained with: the class of the base model, if it is for this task."""
    own = config.architectures[0] if config.architectures else None
    if task is None and own is not None:
        return own
    mapping: Any = _MAPPINGS.get(EMBEDS if task is None else str(task), {})
    if type(config) not in mapping:
        raise UserError(
            f"The adapter '{source}' is for the task {task}, which is not supported for the architecture "
            f"'{config.model_type}'; supported are {', '.join(_MAPPINGS)}."
        )
    names = [model_class.__name__ for model_class in as_classes(mapping[type(config)])]
    return own if own in names else names[0]


def _set_label_count(config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Set the number of labels in `config` to the rows of the head in the adapter's file."""
    outline = build_outline(config, source)
    for name, parameter in outline.named_parameters():
        is_head = not name.startswith(f"{outline.base_model_prefix}.") and name in shapes and parameter.dim() == 2
        if is_head and shapes[name][0] != parameter.shape[0] == config.num_labels:
            config.num_labels = shapes[name][0]


def _untie_adapted(peft_model: Any) -> None:
    """Untie each pair of tied matrices if one of them has an adapter.

    Merging changes the matrix in place, which would change the tied matrix too. An unmerged adapter does not change it.
    """
    adapted = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    model = peft_model.get_base_model()
    for target, source in model.all_tied_weights_keys.items():
        for name in (target, source):
            path, _, attribute = name.rpartition(".")
            layer = model.get_submodule(path)
            if isinstance(layer, adapted):
                inner: nn.Module = layer.get_base_layer()
                matrix = getattr(inner, attribute).detach().clone()
                setattr(inner, attribute, nn.Parameter(matrix, requires_grad=False))


def _merge(peft_model: Any, source: str) -> PreTrainedModel:
    """Merge an adapter into its model, and check that the outputs stay the same."""
    before = _outputs(peft_model)
    with warnings.catch_warnings():
        # peft warns about ties, which `_restore_ties` repairs.
        warnings.simplefilter("ignore")
        model: PreTrainedModel = peft_model.merge_and_unload(safe_merge=True)
    model.requires_grad_(True)
    _restore_ties(model)
    if not are_close(before, _outputs(model)):
        raise UserError(
            f"The adapter '{source}' cannot be merged into its model: merged by peft, it computes something else; "
            "give a model without it."
        )
    return model


def are_close(before: Tensor, after: Tensor) -> bool:
    """Whether two outputs are equal up to `TOLERANCE` and finite at the same places."""
    if before.shape != after.shape or not torch.equal(before.isfinite(), after.isfinite()):
        return False
    first, second = (outputs.nan_to_num(0, 0, 0) for outputs in (before, after))
    return bool((first - second).abs().max() <= TOLERANCE * first.abs().max())


def _restore_ties(model: PreTrainedModel) -> None:
    """Tie the matrices that are still equal, and untie the others, so that both are saved."""
    for target, source in dict(model.all_tied_weights_keys).items():
        copied, original = model.get_parameter(target), model.get_parameter(source)
        path, _, attribute = target.rpartition(".")
        if copied is original:
            continue
        if torch.equal(copied, original):
            setattr(model.get_submodule(path), attribute, original)
        else:
            untie(model, {path})
            model.config.tie_word_embeddings = False


@torch.no_grad()
def _outputs(model: Any) -> Tensor:
    """The first output of `model` for a few fixed random tokens."""
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(rows, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    return model(**inputs)[0].double()
