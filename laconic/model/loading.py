"""From a folder or a hub name to a `LanguageModel`, with everything that can be checked first checked first."""

from dataclasses import replace

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from laconic.errors import UserError
from laconic.model.anatomy import find_entry
from laconic.model.checkpoints import TARGET_TOKENIZER, Checkpoint, checkpoint_at
from laconic.model.checkpoints.fit import outline_of
from laconic.model.checkpoints.place import Place, located
from laconic.model.checkpoints.sentence_modules import MODULES
from laconic.model.embedding import Pipeline, check_width
from laconic.model.lm import LanguageModel
from laconic.model.structure import anatomy_of, structure_of
from laconic.model.task import check_finite, task_of

__all__ = [
    "TARGET_TOKENIZER",
    "check_model",
    "configuration",
    "declared_pipeline",
    "has_weights",
    "load",
    "place_of",
    "skeleton",
    "tokenizers",
    "with_tokenizers",
]


def check_model(source: str) -> PreTrainedConfig:
    """The configuration at `source`, once it is known to be a model that laconic can load; no number is read.

    Raises:
        UserError: nothing there, no configuration, weights that are missing or damaged or need code, an architecture or
            class that is not supported, or a model that another library quantized.
    """
    return _checked(checkpoint_at(source))


def skeleton(source: str) -> LanguageModel:
    """The model at `source` without weights or tokenizer, as its class makes it: what was compressed is not seen.

    Raises:
        UserError: as `check_model`.
    """
    found = checkpoint_at(source)
    config = _checked(found)
    pipeline = None if found.declared is None else found.declared.outline()
    return replace(LanguageModel.of(outline_of(config, source)), source=source, pipeline=pipeline)


def load(source: str, device: str = "cpu") -> LanguageModel:
    """Load the model at `source` in float32, whatever it is stored in, ready for compression or evaluation.

    Raises:
        UserError: as `check_model`, or the weights are missing, mismatched, NaN or infinite.
    """
    found = checkpoint_at(source)
    config = _checked(found)
    stored = found.stored_dtype(config)
    model = found.load(config)
    check_finite(model, source)
    torch.nn.Module.to(model.eval(), device)
    tokenizer, target_tokenizer = found.tokenizers()
    pipeline = None if found.declared is None else found.declared.load().to(device)
    lm = LanguageModel(model, tokenizer, anatomy_of(model), task_of(model), stored, source, target_tokenizer)
    return replace(lm, pipeline=pipeline)


def configuration(source: str) -> PreTrainedConfig:
    """The configuration at `source`, of a model whose weights may be missing.

    Raises:
        UserError: as `check_model`, weights aside.
    """
    return _configuration(checkpoint_at(source))


def declared_pipeline(source: str) -> Pipeline | None:
    """What the model at `source` declares of its vectors, with its numbers; None where it declares nothing.

    Raises:
        UserError: it cannot be read, or is not computed here.
    """
    # What is declared and cannot be read is a mistake; nothing else is taken for it.
    found = checkpoint_at(source) if _declares(source) else _origin(source)
    return None if found is None or found.declared is None else found.declared.load()


def place_of(source: str) -> Place | None:
    """Where the model at `source` lies; None where there is nothing, as of a model that was made in memory."""
    found = _origin(source)
    return None if found is None else found.place


def has_weights(source: str) -> bool:
    """False where there is only a configuration at `source`.

    Raises:
        UserError: there is nothing, or something else than a model.
    """
    return checkpoint_at(source).has_weights


def tokenizers(
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
        return checkpoint_at(source) if source else None
    except UserError:
        return None


def _declares(source: str) -> bool:
    """Whether sentence-transformers declares anything at `source`, whether it can be read or not."""
    try:
        place = located(source)
        return isinstance(place, Place) and place.file(MODULES) is not None
    except UserError:
        return False


def with_tokenizers(lm: LanguageModel) -> LanguageModel:
    """The model with the tokenizers that lie where it came from; one that it has already stays.

    Raises:
        UserError: as `tokenizers`.
    """
    own, of_targets = tokenizers(lm.source, lm.tokenizer)
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
    outline = outline_of(config, found.place.source)
    if find_entry(config.model_type) is None:
        structure_of(outline)
    return config
