"""What `sentence_bert_config.json` says of how texts reach the transformer.

The same file has had several names, and its entries too; what would change the numbers and is not applied here is
refused, with where else it could be said.

Reads the folder layout of sentence-transformers: `modules.json`, and a folder for each module that it names.

Modules are built from their configuration by classes of our own: nothing is imported that a file names, and tensors
are read by safetensors, or by torch's reader of weights alone. What cannot be computed here is refused.
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
    Module,
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
"""In the order in which the library looks for them."""
OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits"}

# Neither changes a number that is computed here, or not before it is asked for.
_IDLE = {"max_seq_length", "do_lower_case", "transformer_task", "module_output_name", "unpad_inputs"}
_IDLE |= {"query_length", "document_length"}
_SAID = ("modality_config", "processing_kwargs")
_ELSEWHERE = {
    "config_args": "config.json",
    "config_kwargs": "config.json",
    "model_args": "config.json",
    "model_kwargs": "config.json",
    "tokenizer_args": "tokenizer_config.json",
    "processor_kwargs": "tokenizer_config.json",
}
_HARMLESS = {
    *("attn_implementation", "dtype", "torch_dtype", "device_map", "low_cpu_mem_usage", "use_safetensors"),
    *("trust_remote_code", "revision", "cache_dir", "token", "local_files_only", "add_pooling_layer"),
    *("model_max_length", "padding_side", "use_fast", "use_cache"),
}


def read_transformer_settings(location: Location) -> tuple[str, Mapping[str, Any]]:
    """The name of the file in the transformer's folder, and what it says; "" and nothing where there is none."""
    return next(((name, said) for name in NAMES if (said := location.json(name)) is not None), ("", {}))


def check_transformer_settings(said: Mapping[str, Any], model_type: str, where: str) -> None:
    """Raise UserError where something in the file at `where` would change what is computed, and is not applied here."""
    for name in (*_SAID, *_ELSEWHERE):
        _check_object(said.get(name), f"{where}: {name}")
    for name in _SAID:
        for inner, held in (said.get(name) or {}).items():
            _check_object(held, f"{where}: {name}.{inner}")
    for name, length in _lengths(said).items():
        if length is not None and not (type(length) is int and length > 0):
            raise must_be(f"{where}: {name}", "a whole number above 0", length)
    for entry, remedy in _unapplied(said, TASKS[model_type]):
        raise UserError(f"{where} says {entry}, which laconic does not apply; {remedy}.")


def _check_object(held: object, where: str) -> None:
    if held is not None and not isinstance(held, dict):
        raise must_be(where, "an object", held)


def max_length(said: Mapping[str, Any]) -> int | None:
    """The maximum number of tokens of a text, if the file has it; `check_settings` has checked it."""
    return min((length for length in _lengths(said).values() if length is not None), default=None)


def _lengths(said: Mapping[str, Any]) -> dict[str, Any]:
    """The maximum lengths that the files declare, by the name of their key."""
    tokenizer = said.get("tokenizer_args") or said.get("processor_kwargs") or {}
    text = (said.get("processing_kwargs") or {}).get("text") or {}
    return {
        "max_seq_length": said.get("max_seq_length"),
        "model_max_length": tokenizer.get("model_max_length"),
        "processing_kwargs.text.max_length": text.get("max_length"),
    }


def _unapplied(said: Mapping[str, Any], task: str) -> Iterator[tuple[str, str]]:
    does = said.get("transformer_task", task)
    if does != task:
        yield f"transformer_task '{does}'", f"it reads models whose transformer does {task}"
    for name, file in _ELSEWHERE.items():
        for entry in (said.get(name) or {}).keys() - _HARMLESS:
            yield f"{name}.{entry}", f"write it into {file}, and take it out here"
    for entry in said.keys() - _IDLE - {*_SAID, *_ELSEWHERE}:
        if said[entry] is not None:
            yield f"{entry}", "take it out if it is not needed"
    plain = "use a model that reads texts as they are"
    modalities = said.get("modality_config")
    if modalities is not None:
        if "message" in modalities:
            yield "modality_config.message, that texts are put into a chat template", plain
        text = modalities.get("text") or {}
        if (text.get("method"), text.get("method_output_name")) != ("forward", OUTPUTS[task]):
            yield f"modality_config.text, that what is read is not the {OUTPUTS[task]} of forward", plain
    for kind, entries in (said.get("processing_kwargs") or {}).items():
        for entry in (entries or {}).keys() - {"max_length", "padding", "truncation"}:
            yield f"processing_kwargs.{kind}.{entry}", "take it out if it is not needed"


CONFIGURATION = "config_sentence_transformers.json"
MODULE_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """The sentence-transformers modules and settings of a model; no tensor is read yet.

    Args:
        location: the folder, or the repository.
        subfolder: where the transformer is in it; "" for the top.
        settings: how texts are read and vectors compared.
        modules: the modules behind the transformer.
        texts: the configuration files as they are to be written again, with the transformer at the top.
        truncate: the number of leading elements of a vector that are kept; None for all.
    """

    location: Location
    subfolder: str
    settings: TextSettings
    modules: tuple[Module, ...]
    texts: Mapping[str, str] = field(repr=False)
    truncate: int | None = None

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors; a cross-encoder scores pairs of texts."""
        return self.settings.model_type != CROSS_ENCODER

    def build_empty(self) -> Pipeline:
        """Build the pipeline on the meta device.

        Raises:
            UserError: a configuration is invalid, or a module reads a tensor that is not there.
        """
        return self._made(self._stages(), {})

    def load(self) -> Pipeline:
        """Load the pipeline in float32.

        Raises:
            UserError: as `build_empty`; or tensors are missing, of another shape, not finite or unreadable.
        """
        stages, tensors = self._stages(), {}
        for stage in stages:
            if wanted := stage.state_dict():
                stored = read_module_tensors(self.location.inside(stage.path), wanted, stage.path)
                tensors[f"{stage.path}/model.safetensors"] = stored
                stage.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, assign=True)
        return self._made(stages, tensors)

    def _stages(self) -> list[Stage]:
        return [stage for module in self.modules for stage in build_stages(module, self.location)]

    def _made(self, stages: list[Stage], tensors: Mapping[str, Mapping[str, Tensor]]) -> Pipeline:
        cut = [] if self.truncate is None else [Truncate(self.truncate)]
        return Pipeline([*stages, *cut], self.settings, Files(texts=self.texts, tensors=tensors))


def read_embedding_config(location: Location) -> EmbeddingConfig | None:
    """Read the sentence-transformers files of a model; None where it has no modules.json.

    Raises:
        UserError: it needs code of its own, has modules or settings that are not supported, or its files are damaged.
    """
    listed = location.listing(MODULES)
    if listed is None:
        return None
    said = location.json(CONFIGURATION) or {}
    for name in ("model_type", "default_prompt_name", "similarity_fn_name"):
        if not isinstance(said.get(name) or "", str):
            raise must_be(f"{name} in {CONFIGURATION} of '{location.source}'", "a text", said[name])
    model_type = said.get("model_type") or "SentenceTransformer"
    first, *rest = parse_modules(listed, model_type, location.source)
    name, of_transformer = read_transformer_settings(location.inside(first.path))
    check_transformer_settings(of_transformer, model_type, f"{name} of '{location.source}'")
    texts = _texts(location, rest)
    texts[MODULES] = _text(location, MODULES) if not first.path else _at_the_top(listed)
    if name:
        texts[name] = _text(location.inside(first.path), name)
    truncate = said.get("truncate_dim")
    if truncate is not None and not (type(truncate) is int and truncate > 0):
        raise must_be(f"truncate_dim in {CONFIGURATION} of '{location.source}'", "a number of 1 or more", truncate)
    found = EmbeddingConfig(
        location=location,
        subfolder=first.path,
        settings=_settings(said, of_transformer, model_type, location.source),
        modules=tuple(rest),
        texts=texts,
        truncate=truncate,
    )
    if found.embeds:
        _check_names(found.build_empty().stage_list, location.source)
    return found


def _texts(location: Location, modules: list[Module]) -> dict[str, str]:
    """The configurations of the whole and of each module, by path, as far as there are such."""
    paths = [CONFIGURATION, *(f"{module.path}/{MODULE_CONFIG}" for module in modules if module.path)]
    return {path: _text(location, path) for path in paths if location.file(path) is not None}


def _text(location: Location, name: str) -> str:
    file = location.file(name)
    assert file is not None
    return file.read_text(encoding="utf-8")


def _at_the_top(listed: list[Any]) -> str:
    """modules.json for a folder whose transformer lies at its top, as the library itself saves it."""
    return json.dumps([{**listed[0], "path": ""}, *listed[1:]], indent=2)


def _check_names(stages: list[Stage], source: str) -> None:
    """Raise UserError where a stage reads what none before it has written, or no sentence vector is left."""
    there = {TOKENS}
    for stage in stages:
        if stage.reads not in there:
            raise UserError(
                f"The {MODULES} of '{source}' is out of order: a module ({stage.describe()}) reads '{stage.reads}', "
                "which none before it writes; correct it."
            )
        there.add(stage.writes)
    if SENTENCE not in there:
        raise UserError(
            f"The {MODULES} of '{source}' names no module that makes one vector of the tokens; add a Pooling module, "
            f"or take {MODULES} out."
        )


def _settings(said: Mapping[str, Any], of_transformer: Mapping[str, Any], model_type: str, source: str) -> TextSettings:
    prompts = said.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt or "", str) for prompt in prompts.values()):
        raise must_be(f"prompts in {CONFIGURATION} of '{source}'", "an object of texts by name", prompts)
    prompts = {name: prompt or "" for name, prompt in prompts.items()}
    default = said.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise UserError(
            f"{CONFIGURATION} of '{source}' names the default prompt '{default}', which is none of its prompts "
            f"({', '.join(prompts) or 'it has none'}); correct it."
        )
    if default is not None and prompts[default] and model_type == CROSS_ENCODER:
        raise UserError(
            f"The cross-encoder '{source}' puts the prompt '{default}' before its texts, which laconic does not; take "
            f"default_prompt_name out of {CONFIGURATION} to have it judged without."
        )
    similarity = said.get("similarity_fn_name") or COSINE
    if similarity not in SIMILARITIES:
        raise must_be(
            f"similarity_fn_name in {CONFIGURATION} of '{source}'", f"one of {', '.join(SIMILARITIES)}", similarity
        )
    return TextSettings(
        model_type=model_type,
        max_length=max_length(of_transformer),
        prompts=prompts,
        default_prompt="" if default is None else prompts[default],
        similarity=similarity,
        lower_case=bool(of_transformer.get("do_lower_case")),
    )
