"""Load a model from a folder or a hub name; everything that can be checked without weights is checked first."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from laconic.errors import UserError
from laconic.model.anatomy import find_entry
from laconic.model.anatomy.infer import find_anatomy, infer_anatomy
from laconic.model.anatomy.text_stack import find_text_anatomy
from laconic.model.checkpoints import Checkpoint, Stored, find_checkpoint
from laconic.model.checkpoints.checkpoint import Tokenizers
from laconic.model.checkpoints.fit import build_outline
from laconic.model.checkpoints.location import Location, find_location
from laconic.model.checkpoints.sentence_modules import MODULES
from laconic.model.embedding import Pipeline, check_width
from laconic.model.lm import LanguageModel
from laconic.model.loans import Loans
from laconic.model.loans_parts import Structures
from laconic.model.loans_skeleton import build_streamed
from laconic.model.task import infer_task
from laconic.numerics.moments import check_finite
from laconic.system import release_freed_memory


def check_model(source: str) -> PreTrainedConfig:
    """Check that laconic can load a model, without reading its weights.

    Args:
        source: a folder, a hub name, or a GGUF file.

    Returns:
        Its configuration.

    Raises:
        UserError: there is no model; its configuration is missing or invalid; its weights are missing, damaged or need
            code; or its architecture, class or quantization is not supported.
    """
    return _check(find_checkpoint(source))


def load_empty(source: str) -> LanguageModel:
    """Load a model without weights or tokenizer: on the meta device, as its class builds it.

    Args:
        source: a folder, a hub name, or a GGUF file. A model that laconic compressed is built without its formats.

    Raises:
        UserError: as `check_model`.
    """
    checkpoint = find_checkpoint(source)
    config = _check(checkpoint)
    pipeline = None if checkpoint.embedding_config is None else checkpoint.embedding_config.build_empty()
    return replace(LanguageModel.of(build_outline(config, source)), source=source, pipeline=pipeline)


def load(source: str, device: str = "cpu", *, packed: bool = False) -> LanguageModel:
    """Load a model with its weights and tokenizer, for compression or evaluation.

    Args:
        source: a folder, a hub name, or a GGUF file. The weights are converted to float32, in which laconic computes.
        device: the torch device that the model is moved to.
        packed: keep the codes that another library wrote, where a format of laconic holds the same numbers, and the
            sizes of the files. For a model that is evaluated as it is.

    Returns:
        The model in evaluation mode; `dtype` is the dtype that it is stored in.

    Raises:
        UserError: as `check_model`; or weights do not match the configuration, or are NaN or infinite.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
        >>> GPT2LMHeadModel(config).half().save_pretrained("tiny")
        >>> lm = load("tiny")
        >>> lm.dtype, lm.model.dtype, lm.tokenizer is None
        (torch.float16, torch.float32, True)
    """
    checkpoint = find_checkpoint(source)
    config = _check(checkpoint)
    dtype = checkpoint.stored_dtype(config)
    model = checkpoint.load_packed(config) if packed else checkpoint.load(config)
    for name, tensor in model.state_dict().items():
        check_finite(tensor, f"The model '{source}' has NaN or infinite values in '{name}'; use a sound checkpoint.")
    torch.nn.Module.to(model.eval(), device)
    tokenizer, target_tokenizer = checkpoint.tokenizers()
    pipeline = None if checkpoint.embedding_config is None else checkpoint.embedding_config.load().to(device)
    lm = LanguageModel(model, tokenizer, find_anatomy(model), infer_task(model), dtype, source, target_tokenizer)
    return replace(lm, pipeline=pipeline, file_sizes=checkpoint.file_sizes(model) if packed else None)


def load_streamed(
    source: str,
    scratch: Path | None = None,
    *,
    structures: Structures | None = None,
    device: str = "cpu",
    tokenizers: Tokenizers | None = None,
) -> LanguageModel:
    """Load a model whose large tensors are read from its files when they are needed (`LanguageModel.on_loan`).

    Args:
        source: a folder or a hub name with safetensors, compressed by laconic or not.
        scratch: a folder, which may be new, for parts that are changed (`LanguageModel.write_back`) and for hidden
            states; None if there will be none.
        structures: functions that describe and rebuild formats, so that another process can go on with the written
            parts (`LanguageModel.restore`); None if none will.
        device: the torch device that tensors on loan are moved to.
        tokenizers: its tokenizers, if they were read before; None to read them.

    Returns:
        The model in evaluation mode. Blocks, word embeddings and heads are on the meta device; all other tensors equal
        those that `load` gives.

    Raises:
        UserError: as `load`; or the checkpoint is of a kind that cannot be read in parts.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
        >>> GPT2LMHeadModel(config).save_pretrained("tiny")
        >>> lm = load_streamed("tiny")
        >>> weight = lambda: lm.model.transformer.h[0].mlp.c_fc.weight
        >>> with lm.on_loan("transformer.h.0"):
        ...     weight().is_meta
        False
        >>> weight().is_meta
        True
    """
    checkpoint = find_checkpoint(source)
    config = _check(checkpoint)
    dtype = checkpoint.stored_dtype(config)
    loans = Loans(source, torch.device(device), scratch, structures)
    model = build_streamed(config, checkpoint.weights_in_parts(config), source, loans)
    model.config.name_or_path = checkpoint.location.name
    tokenizer, target_tokenizer = tokenizers or checkpoint.tokenizers()
    pipeline = None if checkpoint.embedding_config is None else checkpoint.embedding_config.load().to(device)
    lm = LanguageModel(model, tokenizer, find_anatomy(model), infer_task(model), dtype, source, target_tokenizer)
    # Headers and tokenizers were parsed in much more memory than they take.
    release_freed_memory()
    return replace(lm, pipeline=pipeline, loans=loans)


def check_parts(source: str) -> None:
    """Check that `load_streamed` can read a model, without reading its weights.

    Raises:
        UserError: as `check_model`; or the checkpoint is of a kind that cannot be read in parts.
    """
    checkpoint = find_checkpoint(source)
    checkpoint.weights_in_parts(checkpoint.config())


def load_config(source: str) -> PreTrainedConfig:
    """Load the configuration of a model whose weights may be missing.

    Raises:
        UserError: as `check_model`, except for weights.
    """
    return _read_config(find_checkpoint(source))


def load_outline(folder: Path, source: str, tokenizer: PreTrainedTokenizerBase | None = None) -> LanguageModel:
    """A model without weights from a folder that has a configuration and tokenizers, such as an exported one.

    Args:
        folder: the folder.
        source: the name that the user gave it.
        tokenizer: a tokenizer to use instead of the first one in the folder.

    Returns:
        The model as its class builds it, on the meta device.

    Raises:
        UserError: the configuration or a tokenizer cannot be read, or the architecture is not supported.
    """
    checkpoint = Stored(location=Location(source, folder), embedding_config=None)
    lm = LanguageModel.of(build_outline(checkpoint.config(), source))
    own, target_tokenizer = checkpoint.tokenizers(tokenizer)
    return replace(lm, source=source, tokenizer=own, target_tokenizer=target_tokenizer)


def load_pipeline(source: str) -> Pipeline | None:
    """Load the sentence-transformers modules after a model, with their weights; None if its folder has none.

    Raises:
        UserError: they cannot be read, or are not supported.
    """
    # An error in modules.json is raised; after any other error there is no pipeline.
    checkpoint = find_checkpoint(source) if _has_modules(source) else _find_origin(source)
    return None if checkpoint is None or checkpoint.embedding_config is None else checkpoint.embedding_config.load()


def model_location(source: str) -> Location | None:
    """The folder or the repository of a model; None for a model that was made in memory."""
    origin = _find_origin(source)
    return None if origin is None else origin.location


def has_weights(source: str) -> bool:
    """Whether there are weights at `source`; False if there is only a configuration.

    Raises:
        UserError: there is no model.
    """
    return find_checkpoint(source).has_weights


def load_tokenizers(source: str, own: PreTrainedTokenizerBase | None = None) -> Tokenizers:
    """Load the tokenizer of a model, and the tokenizer of its targets if they have a separate one.

    Args:
        source: the folder or hub name that the model was loaded from.
        own: a tokenizer to use instead of the first.

    Returns:
        Both; None for a tokenizer that does not exist.

    Raises:
        UserError: a tokenizer needs code that comes with the model, or cannot be read.
    """
    origin = _find_origin(source)
    return (own, None) if origin is None else origin.tokenizers(own)


def with_tokenizers(lm: LanguageModel) -> LanguageModel:
    """Add the tokenizers from the source of a model; tokenizers that it already has are kept.

    Raises:
        UserError: as `load_tokenizers`.
    """
    tokenizer, target_tokenizer = load_tokenizers(lm.source, lm.tokenizer)
    return replace(lm, tokenizer=tokenizer, target_tokenizer=lm.target_tokenizer or target_tokenizer)


def _find_origin(source: str) -> Checkpoint | None:
    # The name of a model that was made in memory may be anything.
    try:
        return find_checkpoint(source) if source else None
    except UserError:
        return None


def _has_modules(source: str) -> bool:
    try:
        location = find_location(source)
        return isinstance(location, Location) and location.file(MODULES) is not None
    except UserError:
        return False


def _check(checkpoint: Checkpoint) -> PreTrainedConfig:
    config = _read_config(checkpoint)
    checkpoint.check(config)
    return config


def _read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    config = checkpoint.config()
    if checkpoint.embedding_config is not None:
        check_width(checkpoint.embedding_config.build_empty(), config, checkpoint.source)
    outline = build_outline(config, checkpoint.source)
    if find_entry(config.model_type) is None and find_text_anatomy(outline) is None:
        infer_anatomy(outline)
    return config
