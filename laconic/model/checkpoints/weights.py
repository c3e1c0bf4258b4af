"""The weight files of a model: safetensors, or pickles of which only tensors are read.

Everything here reads headers only, except `read_tensors`: names, shapes and dtypes are checked before any weight is
loaded.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from laconic.errors import UserError, quote, reason_of
from laconic.model.checkpoints.location import Location, is_lfs_pointer
from laconic.model.checkpoints.shards import MissingWeightsError, check_unique, find_shards
from laconic.model.stock import MODEL_ERRORS

GENERATION_CONFIG = "generation_config.json"
"""transformers reads it with the weights, from the folder that they lie in."""
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""The dtypes of plain weights, by their safetensors names."""
_DTYPES = _FLOATS | {
    "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
"""The same with the dtypes of quantized weights and of their scales."""
_UNREADABLE_FILES = {
    "tf_model.h5": "for TensorFlow",
    "flax_model.msgpack": "for Flax",
    "model.ckpt.index": "for TensorFlow 1",
    "consolidated.00.pth": "in the layout of its makers",
    "consolidated.safetensors": "in the layout of its makers",
}
"""Weight files that transformers does not read."""


class Header(NamedTuple):
    """The shape and the dtype of one stored tensor; the dtype is its name where torch has no such dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str

    @property
    def is_floating_point(self) -> bool:
        """False for integers and booleans: codes, masks or positions."""
        return "F" in self.dtype if isinstance(self.dtype, str) else self.dtype.is_floating_point


@dataclass(frozen=True)
class Weights:
    """The weights of one model.

    Args:
        folder: the folder that the files lie in.
        files: one file, or the shards.
        are_safe: True for safetensors, False for pickles.
    """

    folder: Path
    files: tuple[Path, ...]
    are_safe: bool

    def dtype(self) -> torch.dtype:
        """The dtype of the first plain floating-point tensor; float32 where there is none."""
        dtypes = (header.dtype for header in self.headers().values())
        return next(
            (dtype for dtype in dtypes if dtype in _FLOATS.values() and not isinstance(dtype, str)), torch.float32
        )

    def headers(self) -> dict[str, Header]:
        """Shape and dtype of every tensor, by name."""
        return {name: header for file in self.files for name, header in read_headers(file, self.are_safe).items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""
        return {name: header.shape for name, header in self.headers().items()}

    def whole_numbers(self) -> set[str]:
        """The names of the tensors that hold integers or booleans."""
        return {name for name, header in self.headers().items() if not header.is_floating_point}

    def empty_tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, with its shape and dtype, on the meta device.

        Raises:
            ValueError: torch has no such dtype.
        """
        empty = {}
        for name, (shape, dtype) in self.headers().items():
            if isinstance(dtype, str):
                raise ValueError(f"'{name}' is of the type {dtype}")
            empty[name] = torch.empty(shape, dtype=dtype, device="meta")
        return empty

    def metadata(self) -> dict[str, str]:
        """The metadata of the safetensors files; empty for pickles."""
        found: dict[str, str] = {}
        for file in self.files if self.are_safe else ():
            with safe_open(file, framework="pt") as tensors:
                found |= tensors.metadata() or {}
        return found


def find_weights(location: Location, config: PreTrainedConfig | None = None) -> Weights | None:
    """Find the weights at `place` and download them where needed.

    Safetensors are preferred to pickles, and one file to shards.

    Args:
        location: the folder or the repository.
        config: the model's configuration, whose `transformers_weights` may name the file.

    Returns:
        The files; None where there are none.

    Raises:
        MissingWeightsError: a shard is missing.
        UserError: the index is invalid, or generation_config.json cannot be used.
    """
    named = getattr(config, "transformers_weights", None)
    single, index = (named, named) if isinstance(named, str) else (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    for one, several, are_safe in ((single, index, True), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME, False)):
        files: tuple[Path, ...] = ()
        if not one.endswith(".json") and (file := location.file(one)) is not None:
            files = (file,)
        elif several.endswith(".json") and (listing := location.file(several)) is not None:
            files = find_shards(location, listing)
        if files:
            _check_generation_config(location)
            return Weights(files[0].parent, files, are_safe)
    return None


def check_weights(location: Location, config: PreTrainedConfig) -> Weights:
    """Find the weights at `place` and check that each file is whole and needs no code.

    Raises:
        MissingWeightsError: there are none, or a shard is missing.
        UserError: a file is damaged, cut off or needs code, or two files hold a tensor of the same name.
    """
    found = find_weights(location, config)
    if found is None:
        raise MissingWeightsError(_explain_no_weights(location, config))
    for file in found.files:
        check_file(file, found.are_safe, location.source)
    if len(found.files) > 1:
        check_unique({file: read_headers(file, found.are_safe) for file in found.files}, location.source)
    return found


def check_file(file: Path, is_safe: bool, source: str) -> None:
    """Check that a weight file is whole and holds nothing but tensors by name.

    Args:
        file: the file.
        is_safe: it is a safetensors file; else a pickle.
        source: the model, as errors name it.

    Raises:
        UserError: it is damaged or cut off, or a pickle that would run code or holds something else.
    """
    try:
        if is_safe:
            with safe_open(file, framework="pt"):
                return
        held = _unpickle(file, "meta")
    except pickle.UnpicklingError as error:
        raise _needs_code(file, source, str(error)) from error
    # What else torch raises on a file that is none of its own is nowhere written down.
    except (
        OSError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        raise _damaged(file, source, reason_of(error)) from error
    if not isinstance(held, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in held.items()
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
            name: Header(tuple(held.get_shape()), _DTYPES.get(str(held.get_dtype()), str(held.get_dtype())))
            for name, held in slices.items()
        }


def read_tensors(file: Path, is_safe: bool) -> dict[str, Tensor]:
    """Every tensor in a file that `check_file` accepted, by name, as stored."""
    return load_file(file) if is_safe else _unpickle(file, "cpu")


def _unpickle(file: Path, device: str) -> dict[str, Tensor]:
    # Tensors and plain containers only; anything else raises UnpicklingError.
    return cast("dict[str, Tensor]", torch.load(file, map_location=device, weights_only=True))


def _check_generation_config(location: Location) -> None:
    # transformers ignores one that it cannot read, and reports a wrong value as an error of the weights.
    values = location.json(GENERATION_CONFIG)
    try:
        GenerationConfig.from_dict(values or {})
    except MODEL_ERRORS as error:
        raise UserError(
            f"The file '{GENERATION_CONFIG}' of the model '{location.source}' cannot be used: {reason_of(error)}; put "
            "it right, or take it away."
        ) from error


def _explain_no_weights(location: Location, config: PreTrainedConfig) -> str:
    named = getattr(config, "transformers_weights", None)
    if isinstance(named, str):
        return (
            f"The weights of '{location.source}' cannot be loaded: its config.json names the file {quote(named)} under "
            "transformers_weights, which is not there; use a complete checkpoint."
        )
    files = _UNREADABLE_FILES.items()
    if (
        other := next((f"{name}, {what}" for name, what in files if location.file(name) is not None), None)
    ) is not None:
        return (
            f"The model '{location.source}' has its weights in {other}; convert them, or use a copy that has "
            "safetensors."
        )
    return (
        f"The weights of '{location.source}' cannot be loaded: there is no file named {SAFE_WEIGHTS_NAME} or "
        f"{WEIGHTS_NAME}, nor a list of shards; use a complete checkpoint."
    )


def _damaged(file: Path, source: str, reason: str) -> UserError:
    if is_lfs_pointer(file):
        return UserError(
            f"The weights of '{source}' cannot be loaded: Git LFS has left a note in the place of '{file.name}'; fetch "
            "the file itself, by `git lfs pull`."
        )
    return UserError(
        f"The weights of '{source}' cannot be loaded: the file '{file.name}' is damaged or cut off ({reason}); "
        "fetch it again."
    )


def _needs_code(file: Path, source: str, message: str) -> UserError:
    """The error for an UnpicklingError; where its message names no global, the file is no pickle of tensors at all."""
    match = re.search(r"GLOBAL (\S+)", message)
    if match is None:
        return _damaged(file, source, "it is no pickle of tensors")
    return UserError(
        f"The file '{file.name}' of the model '{source}' is a pickle that asks to run '{match[1]}', and laconic reads "
        "only tensors; use safetensors, or save model.state_dict() alone."
    )
