"""From a folder or a hub name to a `LanguageModel`, with everything that can be checked first checked first."""

from dataclasses import replace

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from laconic.errors import UserError
from laconic.model.anatomy import find_entry
from laconic.model.checkpoints import TARGET_TOKENIZER, Checkpoint, find_checkpoint
from laconic.model.checkpoints.fit import build_outline
from laconic.model.checkpoints.location import Location, find_location
from laconic.model.checkpoints.sentence_modules import MODULES
from laconic.model.embedding import Pipeline, check_width
from laconic.model.lm import LanguageModel
from laconic.model.structure import find_anatomy, infer_anatomy
from laconic.model.task import check_finite, infer_task

__all__ = [
    "TARGET_TOKENIZER",
    "check_model",
    "has_weights",
    "load",
    "load_config",
    "load_empty",
    "load_pipeline",
    "load_tokenizers",
    "model_location",
    "with_tokenizers",
]


def check_model(source: str) -> PreTrainedConfig:
    """The configuration at `source`, once it is known to be a model that laconic can load; no number is read.

    Raises:
        UserError: nothing there, no configuration, weights that are missing or damaged or need code, an architecture or
            class that is not supported, or a model that another library quantized.
    """
    return _checked(find_checkpoint(source))


def load_empty(source: str) -> LanguageModel:
    """The model at `source` without weights or tokenizer, as its class makes it: what was compressed is not seen.

    Raises:
        UserError: as `check_model`.
    """
    found = find_checkpoint(source)
    config = _checked(found)
    pipeline = None if found.declared is None else found.declared.outline()
    return replace(LanguageModel.of(build_outline(config, source)), source=source, pipeline=pipeline)


def load(source: str, device: str = "cpu") -> LanguageModel:
    """Load the model at `source` in float32, whatever it is stored in, ready for compression or evaluation.

    Raises:
        UserError: as `check_model`, or the weights are missing, mismatched, NaN or infinite.
    """
    found = find_checkpoint(source)
    config = _checked(found)
    stored = found.stored_dtype(config)
    model = found.load(config)
    check_finite(model, source)
    torch.nn.Module.to(model.eval(), device)
    tokenizer, target_tokenizer = found.tokenizers()
    pipeline = None if found.declared is None else found.declared.load().to(device)
    lm = LanguageModel(model, tokenizer, find_anatomy(model), infer_task(model), stored, source, target_tokenizer)
    return replace(lm, pipeline=pipeline)


def load_config(source: str) -> PreTrainedConfig:
    """The configuration at `source`, of a model whose weights may be missing.

    Raises:
        UserError: as `check_model`, weights aside.
    """
    return _configuration(find_checkpoint(source))


def load_pipeline(source: str) -> Pipeline | None:
    """What the model at `source` declares of its vectors, with its numbers; None where it declares nothing.

    Raises:
        UserError: it cannot be read, or is not computed here.
    """
    # What is declared and cannot be read is a mistake; nothing else is taken for it.
    found = find_checkpoint(source) if _declares(source) else _origin(source)
    return None if found is None or found.declared is None else found.declared.load()


def model_location(source: str) -> Location | None:
    """Where the model at `source` lies; None where there is nothing, as of a model that was made in memory."""
    found = _origin(source)
    return None if found is None else found.place


def has_weights(source: str) -> bool:
    """False where there is only a configuration at `source`.

    Raises:
        UserError: there is nothing, or something else than a model.
    """
    return find_checkpoint(source).has_weights


def load_tokenizers(
    source: str, own: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
    """The tokenizer of the model at `source`, and the one of its targets where they are in a language of their own.

    `own` stands in for the first. Either is None where there is none; what needs a tokenizer says so.

    Raises:
        UserError: a tokenizer needs code that comes with the model, or is there and cannot be read.
    """
    found = _origin(source)
    return (own, None) if found is None else found.tokenizers(own)


def _origin(source: str) -> Checkpoint | None:
    """The checkpoint that a model names as its source; None where there is none.

    A model that was made in memory may name anything.
    """
    try:
        return find_checkpoint(source) if source else None
    except UserError:
        return None


def _declares(source: str) -> bool:
    """Whether sentence-transformers declares anything at `source`, whether it can be read or not."""
    try:
        place = find_location(source)
        return isinstance(place, Location) and place.file(MODULES) is not None
    except UserError:
        return False


def with_tokenizers(lm: LanguageModel) -> LanguageModel:
    """The model with the tokenizers that lie where it came from; one that it has already stays.

    Raises:
        UserError: as `tokenizers`.
    """
    own, of_targets = load_tokenizers(lm.source, lm.tokenizer)
    return replace(lm, tokenizer=own, target_tokenizer=lm.target_tokenizer or of_targets)


def _checked(found: Checkpoint) -> PreTrainedConfig:
    config = _configuration(found)
    found.check(config)
    return config


def _configuration(found: Checkpoint) -> PreTrainedConfig:
    config = found.config()
    # laconic asks for outputs by name, whatever they were given as where the model was saved.
    for one in (config, *(part for part in vars(config).values() if isinstance(part, PreTrainedConfig))):
        one.return_dict = True
    if found.declared is not None:
        check_width(found.declared.outline(), config, found.place.source)
    outline = build_outline(config, found.place.source)
    if find_entry(config.model_type) is None:
        infer_anatomy(outline)
    return config
