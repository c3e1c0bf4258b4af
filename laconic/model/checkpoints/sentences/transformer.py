"""What `sentence_bert_config.json` says of how texts reach the transformer.

The same file has had several names, and its entries too; what would change the numbers and is not applied here is
refused, with where else it could be said.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from laconic.errors import UserError, must_be
from laconic.model.checkpoints.place import Place

NAMES = (
    "sentence_bert_config.json",
    *(
        f"sentence_{kind}_config.json"
        for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
)
"""In the order in which the library looks for them."""
TASKS = {"SentenceTransformer": "feature-extraction", "CrossEncoder": "sequence-classification"}
"""By class of the library, what its transformer does."""
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


def settings_in(place: Place) -> tuple[str, Mapping[str, Any]]:
    """The name of the file in the transformer's folder, and what it says; "" and nothing where there is none."""
    return next(((name, said) for name in NAMES if (said := place.json(name)) is not None), ("", {}))


def check_settings(said: Mapping[str, Any], model_type: str, where: str) -> None:
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


def longest(said: Mapping[str, Any]) -> int | None:
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
