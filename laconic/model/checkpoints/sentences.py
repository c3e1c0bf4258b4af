"""Read the folder layout of sentence-transformers: modules.json, the settings of texts, and the modules that it names.

The library has stored its settings under several file names and keys. Settings that would change what is computed, and
that laconic does not apply, are errors; the error names the file in which transformers reads the same setting.

Modules are built from their configuration by classes of laconic (`laconic.model.checkpoints.sentence_modules`): nothing
that a file names is imported, and no pickle runs code.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from laconic.errors import UserError, must_be
from laconic.model.checkpoints.location import Location
from laconic.model.checkpoints.sentence_modules import (
    CROSS_ENCODER,
    MODULES,
    TASKS,
    ModuleEntry,
    build_stages,
    parse_modules,
    read_module_tensors,
)
from laconic.model.embedding import COSINE, SIMILARITIES, Files, Pipeline, TextSettings
from laconic.model.embedding_modules import SENTENCE, TOKENS, Stage, Truncate

NAMES = (
    "sentence_bert_config.json",
    *(
        f"sentence_{kind}_config.json"
        for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
)
"""Names of the file with settings of the transformer, in the order in which the library looks for them."""
OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits"}
"""The output of transformers that each task of a transformer reads."""

_IDLE = {"max_seq_length", "do_lower_case", "transformer_task", "module_output_name", "unpad_inputs"}
_IDLE |= {"query_length", "document_length"}
"""Keys that laconic applies, or that change no number that it computes."""
_CHECKED = ("modality_config", "processing_kwargs")
_ELSEWHERE = {
    "config_args": "config.json",
    "config_kwargs": "config.json",
    "model_args": "config.json",
    "model_kwargs": "config.json",
    "tokenizer_args": "tokenizer_config.json",
    "processor_kwargs": "tokenizer_config.json",
}
"""Keys with settings of transformers, and the file in which transformers reads these settings."""
_HARMLESS = {
    *("attn_implementation", "dtype", "torch_dtype", "device_map", "low_cpu_mem_usage", "use_safetensors"),
    *("trust_remote_code", "revision", "cache_dir", "token", "local_files_only", "add_pooling_layer"),
    *("model_max_length", "padding_side", "use_fast", "use_cache"),
}
"""Settings of transformers that change no number that laconic computes."""


def _check_transformer_settings(settings: Mapping[str, Any], model_type: str, where: str) -> None:
    """Check that no setting in the file `where` changes what is computed without being applied."""
    for name in (*_CHECKED, *_ELSEWHERE):
        _check_object(settings.get(name), f"{where}: {name}")
    for name in _CHECKED:
        for key, value in (settings.get(name) or {}).items():
            _check_object(value, f"{where}: {name}.{key}")
    for name, length in _max_lengths(settings).items():
        if length is not None and not (type(length) is int and length > 0):
            raise must_be(f"{where}: {name}", "a whole number above 0", length)
    for entry, remedy in _unapplied(settings, TASKS[model_type]):
        raise UserError(f"{where} says {entry}, which laconic does not apply; {remedy}.")


def _check_object(value: object, where: str) -> None:
    if value is not None and not isinstance(value, dict):
        raise must_be(where, "an object", value)


def _max_lengths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The maximum numbers of tokens that the settings declare, by key; None if a key is missing."""
    tokenizer = settings.get("tokenizer_args") or settings.get("processor_kwargs") or {}
    text = (settings.get("processing_kwargs") or {}).get("text") or {}
    return {
        "max_seq_length": settings.get("max_seq_length"),
        "model_max_length": tokenizer.get("model_max_length"),
        "processing_kwargs.text.max_length": text.get("max_length"),
    }


def _unapplied(settings: Mapping[str, Any], task: str) -> Iterator[tuple[str, str]]:
    """Each setting that changes what is computed and is not applied, with the remedy."""
    declared = settings.get("transformer_task", task)
    if declared != task:
        yield f"transformer_task '{declared}'", f"it reads models whose transformer does {task}"
    for name, file in _ELSEWHERE.items():
        for entry in (settings.get(name) or {}).keys() - _HARMLESS:
            yield f"{name}.{entry}", f"write it into {file}, and take it out here"
    for entry in settings.keys() - _IDLE - {*_CHECKED, *_ELSEWHERE}:
        if settings[entry] is not None:
            yield f"{entry}", "take it out if it is not needed"
    plain = "use a model that reads texts without changing them"
    modalities = settings.get("modality_config")
    if modalities is not None:
        if "message" in modalities:
            yield "modality_config.message, that texts are put into a chat template", plain
        text = modalities.get("text") or {}
        if (text.get("method"), text.get("method_output_name")) != ("forward", OUTPUTS[task]):
            yield f"modality_config.text, that another output than the {OUTPUTS[task]} of forward is read", plain
    for kind, entries in (settings.get("processing_kwargs") or {}).items():
        for entry in (entries or {}).keys() - {"max_length", "padding", "truncation"}:
            yield f"processing_kwargs.{kind}.{entry}", "take it out if it is not needed"


CONFIGURATION = "config_sentence_transformers.json"
MODULE_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """The sentence-transformers modules and settings of a model; no tensor is read yet.

    Args:
        location: the folder, or the repository.
        subfolder: the folder of the transformer in it; "" for the top.
        settings: how texts are read and vectors compared.
        modules: the modules after the transformer.
        texts: the configuration files by path, for a folder that is saved with the transformer at the top.
        truncate: the number of leading elements of a vector that are kept; None for all.
    """

    location: Location
    subfolder: str
    settings: TextSettings
    modules: tuple[ModuleEntry, ...]
    texts: Mapping[str, str] = field(repr=False)
    truncate: int | None = None

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors; a cross-encoder scores pairs of texts."""
        return self.settings.model_type != CROSS_ENCODER

    def build_empty(self) -> Pipeline:
        """Build the pipeline on the meta device.

        Raises:
            UserError: a configuration is invalid.
        """
        return self._pipeline(self._stages(), {})

    def load(self) -> Pipeline:
        """Load the pipeline in float32.

        Raises:
            UserError: as `build_empty`; or tensors are missing, of another shape, not finite or unreadable.
        """
        stages, tensors = self._stages(), {}
        for stage in stages:
            if expected := stage.state_dict():
                stored = read_module_tensors(self.location.inside(stage.path), expected, stage.path)
                tensors[f"{stage.path}/model.safetensors"] = stored
                stage.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, assign=True)
        return self._pipeline(stages, tensors)

    def _stages(self) -> list[Stage]:
        return [stage for module in self.modules for stage in build_stages(module, self.location)]

    def _pipeline(self, stages: list[Stage], tensors: Mapping[str, Mapping[str, Tensor]]) -> Pipeline:
        cut = [] if self.truncate is None else [Truncate(self.truncate)]
        return Pipeline([*stages, *cut], self.settings, Files(texts=self.texts, tensors=tensors))


def read_embedding_config(location: Location) -> EmbeddingConfig | None:
    """Read the sentence-transformers files of a model.

    Args:
        location: the folder or the repository.

    Returns:
        The modules and settings; None if there is no modules.json.

    Raises:
        UserError: it needs custom code, has modules or settings that are not supported, or its files are damaged.
    """
    entries = location.listing(MODULES)
    if entries is None:
        return None
    source = location.source
    settings = location.json(CONFIGURATION) or {}
    for name in ("model_type", "default_prompt_name", "similarity_fn_name"):
        if not isinstance(settings.get(name) or "", str):
            raise must_be(f"{name} in {CONFIGURATION} of '{source}'", "a text", settings[name])
    model_type = settings.get("model_type") or "SentenceTransformer"
    first, *rest = parse_modules(entries, model_type, source)
    folder = location.inside(first.path)
    files = ((name, folder.json(name)) for name in NAMES)
    name, transformer = next(((name, content) for name, content in files if content is not None), ("", {}))
    _check_transformer_settings(transformer, model_type, f"{name} of '{source}'")
    paths = [CONFIGURATION, *(f"{module.path}/{MODULE_CONFIG}" for module in rest if module.path)]
    texts = {path: _read_text(location, path) for path in paths if location.file(path) is not None}
    if first.path:
        # As the library saves it: with the transformer at the top of the folder.
        texts[MODULES] = json.dumps([{**entries[0], "path": ""}, *entries[1:]], indent=2)
    else:
        texts[MODULES] = _read_text(location, MODULES)
    if name:
        texts[name] = _read_text(folder, name)
    truncate = settings.get("truncate_dim")
    if truncate is not None and not (type(truncate) is int and truncate > 0):
        raise must_be(f"truncate_dim in {CONFIGURATION} of '{source}'", "a number of 1 or more", truncate)
    config = EmbeddingConfig(
        location=location,
        subfolder=first.path,
        settings=_text_settings(settings, transformer, model_type, source),
        modules=tuple(rest),
        texts=texts,
        truncate=truncate,
    )
    if config.embeds:
        _check_order(config.build_empty().stage_list, source)
    return config


def _read_text(location: Location, name: str) -> str:
    file = location.file(name)
    assert file is not None
    return file.read_text(encoding="utf-8")


def _check_order(stages: list[Stage], source: str) -> None:
    """Check that each stage reads a tensor that an earlier one writes, and that a sentence vector is written."""
    written = {TOKENS}
    for stage in stages:
        if stage.reads not in written:
            raise UserError(
                f"The {MODULES} of '{source}' is out of order: a module ({stage.describe()}) reads '{stage.reads}', "
                "which none before it writes; correct it."
            )
        written.add(stage.writes)
    if SENTENCE not in written:
        raise UserError(
            f"The {MODULES} of '{source}' names no module that makes one vector of the tokens; add a Pooling module, "
            f"or take {MODULES} out."
        )


def _text_settings(
    settings: Mapping[str, Any], transformer: Mapping[str, Any], model_type: str, source: str
) -> TextSettings:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt or "", str) for prompt in prompts.values()):
        raise must_be(f"prompts in {CONFIGURATION} of '{source}'", "an object of texts by name", prompts)
    prompts = {name: prompt or "" for name, prompt in prompts.items()}
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise UserError(
            f"{CONFIGURATION} of '{source}' names the default prompt '{default}', which is none of its prompts "
            f"({', '.join(prompts) or 'it has none'}); correct it."
        )
    if default is not None and prompts[default] and model_type == CROSS_ENCODER:
        raise UserError(
            f"The cross-encoder '{source}' puts the prompt '{default}' before its texts, which laconic does not; take "
            f"default_prompt_name out of {CONFIGURATION} to evaluate the model without it."
        )
    similarity = settings.get("similarity_fn_name") or COSINE
    if similarity not in SIMILARITIES:
        raise must_be(
            f"similarity_fn_name in {CONFIGURATION} of '{source}'", f"one of {', '.join(SIMILARITIES)}", similarity
        )
    lengths = [length for length in _max_lengths(transformer).values() if length is not None]
    return TextSettings(
        model_type=model_type,
        max_length=min(lengths, default=None),
        prompts=prompts,
        default_prompt="" if default is None else prompts[default],
        similarity=similarity,
        lower_case=bool(transformer.get("do_lower_case")),
    )
