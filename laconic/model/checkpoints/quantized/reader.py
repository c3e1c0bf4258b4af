"""Dequantizes the checkpoints of one library: takes the tensors of its files, gives plain matrices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


class UnreadableError(Exception):
    """Why codes cannot be turned into numbers; the end of a sentence."""


@dataclass(frozen=True)
class StoredTensors:
    """What the files of a model hold.

    tensors:  by name, as stored.
    metadata: of the files, as safetensors has it.
    """

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How the checkpoints of one library are read.

    dequantize: takes the stored tensors and the model's `quantization_config`. Returns the tensors of the plain model:
        each matrix as `<module>.weight` of shape (out, in) in float32, everything else as it is stored. It is run
        without numbers first, on the meta device, which shows what names, dtypes and shapes show.
    check: raises UnreadableError for a `quantization_config` that `dequantize` cannot read.
    package: the package that it needs, if any.
    least: the oldest version of it that will do.
    """

    dequantize: Callable[[StoredTensors, Mapping[str, Any]], dict[str, Tensor]]
    check: Callable[[Mapping[str, Any]], None] = lambda _: None
    package: str | None = None
    least: str | None = None
