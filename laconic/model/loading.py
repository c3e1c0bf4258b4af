"""From a folder or a hub name to a `LanguageModel`, with everything that can be checked first checked first."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from laconic.errors import UserError
from laconic.model.anatomy import anatomy_of
from laconic.model.lm import LanguageModel
from laconic.model.task import auto_class_for, check_finite, task_of

TARGET_TOKENIZER = "target_tokenizer"


def check_model(source: str) -> PreTrainedConfig:
    """The configuration at `source`, once it is known to be one that laconic can load; weights are not touched.

    Raises:
        UserError: nothing there, no configuration in it, or an architecture or class that is not supported.
    """
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    folder = Path(source).expanduser()
    if looks_local and not folder.is_dir():
        raise UserError(f"There is no model folder '{source}'; give a folder with a config.json or a hub name.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"The folder '{source}' has no config.json; give a folder saved by save_pretrained.")
    try:
        config = AutoConfig.from_pretrained(str(folder) if folder.is_dir() else source)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"There is no loadable model '{source}', neither as a folder nor on the hub: {reason}"
        ) from error
    anatomy_of(config.model_type)
    auto_class_for(config, config.architectures or ())
    return config


def load(source: str, device: str = "cpu") -> LanguageModel:
    """Load the model at `source` in float32, whatever it is stored in, ready for compression or evaluation.

    Raises:
        UserError: as `check_model`, or the weights are missing, mismatched, NaN or infinite.
    """
    config = check_model(source)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    auto_class = auto_class_for(config, config.architectures or ())
    try:
        model = auto_class.from_pretrained(source, dtype=torch.float32)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"The weights of '{source}' cannot be loaded: {reason}") from error
    check_finite(model, source)
    model.eval().to(device)
    tokenizer = _tokenizer(source)
    target = Path(source).expanduser() / TARGET_TOKENIZER
    target_tokenizer = _tokenizer(str(target)) if target.is_dir() else None
    anatomy = anatomy_of(config.model_type)
    return LanguageModel(model, tokenizer, anatomy, task_of(model), stored, source, target_tokenizer)


def _tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError):
        # A model may come without a tokenizer; what needs one says so.
        return None
