"""The files that hold a model's weights: safetensors, or else pickles of which tensors alone are read."""

import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from laconic.errors import UserError, reason_of, shown
from laconic.model.checkpoints.disguised import is_pointer
from laconic.model.checkpoints.place import Place
from laconic.model.checkpoints.shards import MissingWeightsError, check_apart, shards_of
from laconic.model.stock import MODEL_ERRORS

BESIDE = ("generation_config.json",)
"""What transformers reads with the weights, from the folder that they lie in."""
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""safetensors' names of the dtypes that weights are stored in."""
_DTYPES = _FLOATS | {
    "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
"""And of those that codes and their scales are stored in."""
_OTHERS = {
    "tf_model.h5": "for TensorFlow",
    "flax_model.msgpack": "for Flax",
    "model.ckpt.index": "for TensorFlow 1",
    "consolidated.00.pth": "in the layout of its makers",
    "consolidated.safetensors": "in the layout of its makers",
}
"""Files of weights that transformers no longer reads, or never did."""


@dataclass(frozen=True)
class Weights:
    """The weights of one model: one file, or shards.

    folder:    where the files lie.
    are_safe:  they are safetensors; else pickles.
    """

    folder: Path
    files: tuple[Path, ...]
    are_safe: bool

    def dtype(self) -> torch.dtype:
        """That of the first floating tensor in the first file that has one; float32 where none has."""
        read = _safe_dtypes if self.are_safe else _pickled_dtypes
        return next((dtype for file in self.files for dtype in read(file)), torch.float32)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by its name; no number is read."""
        return {name: shape for file in self.files for name, shape in shapes_in(file).items()}

    def headers(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name, of its dtype and shape, on the meta device; no number is read.

        Raises:
            ValueError: one is of a dtype that torch has not.
        """
        read = _safe_headers if self.are_safe else _pickled_headers
        return {name: tensor for file in self.files for name, tensor in read(file).items()}

    def metadata(self) -> dict[str, str]:
        """What the safetensors files say beside their tensors."""
        return {name: said for file in self.files if self.are_safe for name, said in _metadata(file).items()}

    def whole_numbers(self) -> set[str]:
        """Names of the tensors that hold whole numbers or bits."""
        read = _safe_whole_numbers if self.are_safe else _pickled_whole_numbers
        return {name for file in self.files for name in read(file)}


def find_weights(place: Place, config: PreTrainedConfig | None = None) -> Weights | None:
    """The weights at `place`, fetched where they have to be: safetensors where there are both, one file before shards.

    Raises:
        MissingWeightsError: a shard is missing.
        UserError: the list of shards is none.
    """
    named = getattr(config, "transformers_weights", None)
    single, index = (named, named) if isinstance(named, str) else (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    for one, several, are_safe in ((single, index, True), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME, False)):
        if not one.endswith(".json") and (file := place.file(one)) is not None:
            return _with_what_lies_beside(place, Weights(file.parent, (file,), are_safe))
        if several.endswith(".json") and (listing := place.file(several)) is not None:
            return _with_what_lies_beside(place, Weights(listing.parent, shards_of(place, listing), are_safe))
    return None


def check_weights(place: Place, config: PreTrainedConfig) -> Weights:
    """The weights at `place`, once it is known that each file is whole and needs no code; no number is read.

    Raises:
        MissingWeightsError: there are none, or a shard is missing.
        UserError: a file is damaged, cut off or needs code.
    """
    found = find_weights(place, config)
    if found is None:
        raise MissingWeightsError(_none(place, config))
    for file in found.files:
        check_safe(file, place.source) if found.are_safe else check_pickle(file, place.source)
    check_apart({file: shapes_in(file) for file in found.files} if len(found.files) > 1 else {}, place.source)
    return found


def check_safe(file: Path, source: str) -> None:
    """Raise UserError where the safetensors file has no sound header, or ends before its last tensor."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise _damaged(file, source, reason_of(error)) from error


def check_pickle(file: Path, source: str) -> None:
    """Raise UserError where the pickle is cut off, would run code, or holds anything but tensors by name."""
    try:
        held = read_pickle(file, "meta")
    except pickle.UnpicklingError as error:
        raise _needs_code(file, source, str(error)) from error
    # What else torch raises on a file that is none of its own is nowhere written down.
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _damaged(file, source, reason_of(error)) from error
    if not isinstance(held, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in held.items()
    ):
        raise UserError(
            f"The file '{file.name}' of the model '{source}' holds no table of tensors by name; "
            "save model.state_dict(), or better save_pretrained."
        )


def read_pickle(file: Path, device: str = "cpu") -> object:
    """What the pickle holds, of tensors and plain containers only; anything else raises UnpicklingError."""
    return torch.load(file, map_location=device, weights_only=True)


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in one file that has been checked, by name; no number is read."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (as above)
    held = read_pickle(file, "meta")
    assert isinstance(held, dict)
    return {name: tuple(tensor.shape) for name, tensor in held.items()}


def _with_what_lies_beside(place: Place, found: Weights) -> Weights:
    for name in BESIDE:
        # transformers passes over one that it cannot read, and tells of a value that it does not take as of weights.
        said = place.json(name)
        try:
            GenerationConfig.from_dict(said or {})
        except MODEL_ERRORS as error:
            raise UserError(
                f"The file '{name}' of the model '{place.source}' cannot be used: {reason_of(error)}; put it right, or "
                "take it away."
            ) from error
    return found


def _none(place: Place, config: PreTrainedConfig) -> str:
    named = getattr(config, "transformers_weights", None)
    if isinstance(named, str):
        return (
            f"The weights of '{place.source}' cannot be loaded: its config.json names the file {shown(named)} under "
            "transformers_weights, which is not there; use a complete checkpoint."
        )
    other = next((f"{name}, {how}" for name, how in _OTHERS.items() if place.file(name) is not None), None)
    if other is not None:
        return (
            f"The model '{place.source}' has its weights in {other}; convert them, or use a copy that has safetensors."
        )
    return (
        f"The weights of '{place.source}' cannot be loaded: there is no file named {SAFE_WEIGHTS_NAME} or "
        f"{WEIGHTS_NAME}, nor a list of shards; use a complete checkpoint."
    )


def _damaged(file: Path, source: str, reason: str) -> UserError:
    if is_pointer(file):
        return UserError(
            f"The weights of '{source}' cannot be loaded: Git LFS has left a note in the place of '{file.name}'; fetch "
            "the file itself, by `git lfs pull`."
        )
    return UserError(
        f"The weights of '{source}' cannot be loaded: the file '{file.name}' is damaged or cut off ({reason}); "
        "fetch it again."
    )


def _needs_code(file: Path, source: str, message: str) -> UserError:
    """torch says in many words what it did not run; where it names nothing, the file is no pickle of tensors at all."""
    asked = re.search(r"GLOBAL (\S+)", message)
    if asked is None:
        return _damaged(file, source, "it is no pickle of tensors")
    return UserError(
        f"The file '{file.name}' of the model '{source}' is a pickle that asks to run '{asked[1]}', and laconic reads "
        "only tensors; use safetensors, or save model.state_dict() alone."
    )


def _safe_dtypes(file: Path) -> Iterator[torch.dtype]:
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a mapping)
            if (dtype := tensors.get_slice(name).get_dtype()) in _FLOATS:
                yield _FLOATS[dtype]


def _safe_headers(file: Path) -> dict[str, torch.Tensor]:
    found = {}
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a mapping)
            held = tensors.get_slice(name)
            if held.get_dtype() not in _DTYPES:
                raise ValueError(f"'{name}' is of the type {held.get_dtype()}")
            found[name] = torch.empty(held.get_shape(), dtype=_DTYPES[held.get_dtype()], device="meta")
    return found


def _pickled_headers(file: Path) -> dict[str, torch.Tensor]:
    held = read_pickle(file, "meta")
    assert isinstance(held, dict)
    return held


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as held:
        return held.metadata() or {}


def _safe_whole_numbers(file: Path) -> Iterator[str]:
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a mapping)
            if "F" not in tensors.get_slice(name).get_dtype():
                yield name


def _pickled_dtypes(file: Path) -> Iterator[torch.dtype]:
    held = read_pickle(file, "meta")
    assert isinstance(held, dict)
    yield from (tensor.dtype for tensor in held.values() if tensor.is_floating_point())


def _pickled_whole_numbers(file: Path) -> Iterator[str]:
    held = read_pickle(file, "meta")
    assert isinstance(held, dict)
    yield from (name for name, tensor in held.items() if not tensor.is_floating_point())
