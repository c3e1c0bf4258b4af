"""The weight files of a model: safetensors, or pickles, from which only tensors are read.

All functions read only headers, except `read_tensors`: names, shapes and dtypes are checked before any weight is
loaded. Weights in several files (shards) have an index, whose `weight_map` maps the name of each tensor to its file.
"""

import json
import pickle
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from laconic.errors import UserError, must_be, quote, reason_of
from laconic.model.checkpoints.location import Location, is_lfs_pointer, read_json
from laconic.model.stock import MODEL_ERRORS

GENERATION_CONFIG = "generation_config.json"
"""transformers reads it with the weights, from the same folder."""
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""The dtypes of plain weights by their names in safetensors."""
DTYPES = _FLOATS | {
    "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
"""The same for all dtypes, including those of quantized weights and their scales."""
_UNREADABLE_FILES = {
    "tf_model.h5": "for TensorFlow",
    "flax_model.msgpack": "for Flax",
    "model.ckpt.index": "for TensorFlow 1",
    "consolidated.00.pth": "in the layout of its makers",
    "consolidated.safetensors": "in the layout of its makers",
}
"""Weight files that transformers does not read."""


class MissingWeightsError(UserError):
    """Weight files, or some shards of them, are missing."""


class Header(NamedTuple):
    """The shape and the dtype of a stored tensor; the dtype is a name if torch has no such dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str

    @property
    def is_floating_point(self) -> bool:
        """False for integers and booleans, such as codes, masks and positions."""
        return "F" in self.dtype if isinstance(self.dtype, str) else self.dtype.is_floating_point


@dataclass(frozen=True)
class Weights:
    """The weights of one model.

    Args:
        folder: the folder of the files.
        files: one file, or the shards.
        are_safe: True for safetensors, False for pickles.
    """

    folder: Path
    files: tuple[Path, ...]
    are_safe: bool

    def dtype(self) -> torch.dtype:
        """The dtype of the first plain floating-point tensor; float32 if there is none."""
        for header in self.headers().values():
            if isinstance(header.dtype, torch.dtype) and header.dtype in _FLOATS.values():
                return header.dtype
        return torch.float32

    def headers(self) -> dict[str, Header]:
        """Shape and dtype of every tensor, by name."""
        return {name: header for file in self.files for name, header in read_headers(file, self.are_safe).items()}

    def integer_names(self) -> set[str]:
        """The names of the tensors that hold integers or booleans."""
        return {name for name, header in self.headers().items() if not header.is_floating_point}


def find_weights(location: Location, config: PreTrainedConfig | None = None) -> Weights | None:
    """Find the weight files of a model, and download them if needed.

    Safetensors are preferred to pickles, and one file to shards.

    Args:
        location: the folder or the repository.
        config: the model's configuration, whose `transformers_weights` may name the file.

    Returns:
        The files; None if the model has no weights.

    Raises:
        MissingWeightsError: a shard is missing.
        UserError: the index is invalid, or generation_config.json cannot be used.
    """
    named = getattr(config, "transformers_weights", None)
    single, index = (named, named) if isinstance(named, str) else (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    for file_name, index_name, are_safe in ((single, index, True), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME, False)):
        files: tuple[Path, ...] = ()
        if not file_name.endswith(".json") and (file := location.file(file_name)) is not None:
            files = (file,)
        elif index_name.endswith(".json") and (index_file := location.file(index_name)) is not None:
            files = _find_shards(location, index_file)
        if files:
            _check_generation_config(location)
            return Weights(files[0].parent, files, are_safe)
    return None


def _find_shards(location: Location, index_file: Path) -> tuple[Path, ...]:
    """The shards that an index names, sorted by name; they are downloaded if needed."""
    place = f"The file '{index_file.name}' of the model '{location.source}'"
    index = read_json(index_file, place, dict)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise must_be(f"{place}: weight_map", "an object that maps tensors to files", files)
    if not isinstance(index.get("metadata"), dict):
        raise must_be(f"{place}: metadata", "an object", index.get("metadata"))
    if (name := _duplicate_key(index_file)) is not None:
        raise UserError(f"{place} names {quote(name)} twice; use the list that was saved with the weights.")
    return tuple(_find_shard(location, index_file.name, name) for name in sorted(set(files.values())))


def _find_shard(location: Location, index_name: str, name: str) -> Path:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        place = f"A file that '{index_name}' of the model '{location.source}' names"
        raise must_be(place, "one in the same folder", name)
    try:
        shard = location.file(name)
    except (OSError, ValueError):
        # No file can have such a name.
        shard = None
    if shard is None:
        raise MissingWeightsError(
            f"The weights of '{location.source}' are incomplete: '{index_name}' names the file {quote(name)}, which is "
            "not there; fetch the missing files."
        )
    return shard


def _duplicate_key(file: Path) -> str | None:
    """A key that an object in the JSON file has twice; json.loads would silently keep the last value."""
    duplicates: list[str] = []

    def collect(items: list[tuple[str, object]]) -> dict[str, object]:
        duplicates.extend(name for name, count in Counter(name for name, _ in items).items() if count > 1)
        return dict(items)

    json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=collect)
    return duplicates[0] if duplicates else None


def check_weight_files(location: Location, config: PreTrainedConfig) -> Weights:
    """Find the weight files of a model, and check that each is whole and needs no code.

    Args:
        location: the folder or the repository.
        config: the model's configuration.

    Raises:
        MissingWeightsError: there are none, or a shard is missing.
        UserError: a file is damaged, cut off or needs code, or two files have a tensor of the same name.
    """
    weights = find_weights(location, config)
    if weights is None:
        raise MissingWeightsError(_explain_no_weights(location, config))
    for file in weights.files:
        check_file(file, weights.are_safe, location.source)
    owners: dict[str, Path] = {}
    for file in weights.files if len(weights.files) > 1 else ():
        for name in read_headers(file, weights.are_safe):
            if name in owners:
                raise UserError(
                    f"The weights of '{location.source}' hold '{name}' twice, in '{owners[name].name}' and in "
                    f"'{file.name}'; use files that were saved together."
                )
            owners[name] = file
    return weights


def check_file(file: Path, is_safe: bool, source: str) -> None:
    """Check that a weight file is whole and contains only tensors by name.

    Args:
        file: the file.
        is_safe: True for safetensors, False for a pickle.
        source: the model, as errors name it.

    Raises:
        UserError: it is damaged or cut off, or is a pickle that would run code or contains other objects.
    """
    try:
        if is_safe:
            with safe_open(file, framework="pt"):
                return
        content = _unpickle(file, "meta")
    except pickle.UnpicklingError as error:
        raise _code_error(file, source, str(error)) from error
    # torch does not document what it raises for a file that it did not write.
    except (
        OSError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        raise _damaged_error(file, source, reason_of(error)) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise UserError(
            f"The file '{file.name}' of the model '{source}' holds no table of tensors by name; "
            "save model.state_dict(), or better save_pretrained."
        )


def read_headers(file: Path, is_safe: bool) -> dict[str, Header]:
    """Shape and dtype of every tensor in a file that `check_file` accepted, by name; no weight is read."""
    if not is_safe:
        return {name: Header(tuple(tensor.shape), tensor.dtype) for name, tensor in _unpickle(file, "meta").items()}
    with safe_open(file, framework="pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
        return {
            name: Header(tuple(part.get_shape()), DTYPES.get(str(part.get_dtype()), str(part.get_dtype())))
            for name, part in slices.items()
        }


def read_tensors(file: Path, is_safe: bool) -> dict[str, Tensor]:
    """Every tensor in a file that `check_file` accepted, by name, as stored."""
    return load_file(file) if is_safe else _unpickle(file, "cpu")


def _unpickle(file: Path, device: str) -> dict[str, Tensor]:
    # Tensors and plain containers only; anything else raises UnpicklingError.
    return cast("dict[str, Tensor]", torch.load(file, map_location=device, weights_only=True))


def _check_generation_config(location: Location) -> None:
    # transformers ignores a file that it cannot read, and reports a wrong value as an error of the weights.
    values = location.json(GENERATION_CONFIG)
    try:
        GenerationConfig.from_dict(values or {})
    except MODEL_ERRORS as error:
        raise UserError(
            f"The file '{GENERATION_CONFIG}' of the model '{location.source}' cannot be used: {reason_of(error)}; "
            "correct it, or remove it."
        ) from error


def _explain_no_weights(location: Location, config: PreTrainedConfig) -> str:
    named = getattr(config, "transformers_weights", None)
    if isinstance(named, str):
        return (
            f"The weights of '{location.source}' cannot be loaded: its config.json names the file {quote(named)} under "
            "transformers_weights, which is not there; use a complete checkpoint."
        )
    for name, purpose in _UNREADABLE_FILES.items():
        if location.file(name) is not None:
            return (
                f"The model '{location.source}' has its weights in {name}, {purpose}; convert them, or use a copy that "
                "has safetensors."
            )
    return (
        f"The weights of '{location.source}' cannot be loaded: there is no file named {SAFE_WEIGHTS_NAME} or "
        f"{WEIGHTS_NAME}, nor a list of shards; use a complete checkpoint."
    )


def _damaged_error(file: Path, source: str, reason: str) -> UserError:
    if is_lfs_pointer(file):
        return UserError(
            f"The weights of '{source}' cannot be loaded: '{file.name}' is a pointer of Git LFS, not the file itself; "
            "fetch the file by `git lfs pull`."
        )
    return UserError(
        f"The weights of '{source}' cannot be loaded: the file '{file.name}' is damaged or cut off ({reason}); "
        "fetch it again."
    )


def _code_error(file: Path, source: str, message: str) -> UserError:
    """The error for an UnpicklingError with this message; if it names no global, the file is no pickle of tensors."""
    match = re.search(r"GLOBAL (\S+)", message)
    if match is None:
        return _damaged_error(file, source, "it is no pickle of tensors")
    return UserError(
        f"The file '{file.name}' of the model '{source}' is a pickle that asks to run '{match[1]}', and laconic reads "
        "only tensors; use safetensors, or save only model.state_dict()."
    )
