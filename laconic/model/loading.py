"""From a folder or a hub name to a `LanguageModel`, with everything that can be checked first checked first."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from laconic.errors import UserError, reason_of
from laconic.model.anatomy import entry_of
from laconic.model.lm import LanguageModel
from laconic.model.structure import anatomy_of, structure_of
from laconic.model.task import auto_class_for, check_finite, task_of

TARGET_TOKENIZER = "target_tokenizer"
QUANT_METHOD = "laconic"
"""Under this name laconic's own `quantization_config` stands in config.json."""
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""safetensors' names of the dtypes that weights are stored in."""


def check_model(source: str) -> PreTrainedConfig:
    """The configuration at `source`, once it is known to be one that laconic can load; weights are not touched.

    Raises:
        UserError: nothing there, no configuration or no safetensors in it, an architecture or class that is not
            supported, or a model that another library quantized.
    """
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    folder = Path(source).expanduser()
    if looks_local and not folder.is_dir():
        raise UserError(f"There is no model folder '{source}'; give a folder with a config.json or a hub name.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"The folder '{source}' has no config.json; give a folder saved by save_pretrained.")
    try:
        config = AutoConfig.from_pretrained(_place(source))
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise UserError(
            f"There is no loadable model '{source}', neither as a folder nor on the hub: {reason_of(error)}."
        ) from error
    auto_class_for(config, config.architectures or ())
    if entry_of(config.model_type) is None:
        structure_of(_empty(config))
    _check_quantization(config, source)
    if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"The model '{source}' has its weights in pytorch_model.bin, and laconic reads safetensors; "
            "convert it: load it with transformers and save it again with save_pretrained."
        )
    return config


def skeleton(source: str) -> LanguageModel:
    """The model at `source` without weights or tokenizer, as its class makes it: what was compressed is not seen.

    Raises:
        UserError: as `check_model`.
    """
    return LanguageModel.of(_empty(check_model(source)))


def load(source: str, device: str = "cpu") -> LanguageModel:
    """Load the model at `source` in float32, whatever it is stored in, ready for compression or evaluation.

    Raises:
        UserError: as `check_model`, or the weights are missing, mismatched, NaN or infinite.
    """
    config = check_model(source)
    model = _weights(source, auto_class_for(config, config.architectures or ()))
    check_finite(model, source)
    torch.nn.Module.to(model.eval(), device)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else _stored_dtype(_place(source))
    tokenizer, target_tokenizer = tokenizers(source)
    return LanguageModel(model, tokenizer, anatomy_of(model), task_of(model), stored, source, target_tokenizer)


def tokenizers(
    source: str, own: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
    """The tokenizer of the model at `source`, and the one of its targets where they are in a language of their own.

    `own` stands in for the first. Either is None where there is none; what needs a tokenizer says so.
    """
    if not source:
        return own, None
    folder = Path(source).expanduser()
    target = folder / TARGET_TOKENIZER
    found = _tokenizer(folder, source) if own is None else own
    return found, _tokenizer(target) if target.is_dir() else None


def _empty(config: PreTrainedConfig) -> PreTrainedModel:
    """The model that `config` describes, on the meta device."""
    with torch.device("meta"):
        return auto_class_for(config, config.architectures or ()).from_config(config)


def _weights(source: str, auto_class: Any) -> PreTrainedModel:
    """The model in float32, with every tensor from the file: transformers alone would only warn of random ones."""
    place = _place(source)
    try:
        # A pooler that is not in the file is drawn, the same at every loading.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # Mismatches are gathered, to be named below.
            model, report = auto_class.from_pretrained(
                place, dtype=torch.float32, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"The weights of '{source}' cannot be loaded: {reason_of(error)}.") from error
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise UserError(
            f"The weights of '{source}' do not fit its config.json: '{name}' has shape {tuple(stored)} in the file and "
            f"{tuple(wanted)} in the model; use files that were saved together."
        )
    # Some plain encoders are saved without the pooler that their class has; nothing reads it but a head that is put on
    # them, and learns.
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(
            f"The weights of '{source}' are incomplete: {len(missing)} of its tensors are missing, the first is "
            f"'{missing[0]}'; use a complete checkpoint."
        )
    return model


def _check_quantization(config: PreTrainedConfig, source: str) -> None:
    """Refuse what another library quantized: its matrices are no longer there to be factored."""
    quantization = config.to_dict().get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method != QUANT_METHOD:
        raise UserError(
            f"The model '{source}' is quantized by '{method or 'an unnamed library'}', which laconic does not read; "
            "use the model that it was made from."
        )


def _stored_dtype(place: str) -> torch.dtype:
    """The dtype of the first floating tensor in the safetensors file, for a configuration that does not say it."""
    file = cached_file(place, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if file is None:
        index = cached_file(place, SAFE_WEIGHTS_INDEX_NAME)
        assert index is not None
        file = cached_file(place, next(iter(json.loads(Path(index).read_text())["weight_map"].values())))
    with safe_open(file, framework="pt") as tensors:
        names = (tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118 (not a mapping)
        return next((_FLOATS[name] for name in names if name in _FLOATS), torch.float32)


def _place(source: str) -> str:
    """The folder at `source`, or the hub name that it is."""
    folder = Path(source).expanduser()
    return str(folder) if folder.is_dir() else source


def _tokenizer(folder: Path, source: str = "") -> PreTrainedTokenizerBase | None:
    """The tokenizer in `folder`, or of the hub name `source`; a model may come without, and what needs one says so."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else source)
    except (OSError, ValueError, KeyError):
        return None
    # From a folder without one, transformers makes up an empty tokenizer of the model's kind.
    files = {"tokenizer_config.json", *tokenizer.vocab_files_names.values()}
    return None if folder.is_dir() and not any((folder / file).is_file() for file in files) else tokenizer
