"""What reads the codes of one library: tensors of a file in, plain matrices out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


class UnreadableError(Exception):
    """Why codes cannot be turned into numbers; the end of a sentence."""


@dataclass(frozen=True)
class Held:
    """What the files of a model hold.

    tensors:  by name, as stored.
    metadata: of the files, as safetensors has it.
    """

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One library's way of writing matrices as codes.

    numbers: from what the files hold and the model's `quantization_config` to the tensors of the model without codes:
        each matrix as `<module>.weight` of shape (out, in) in float32, everything else as it is.
    check: raises UnreadableError for a `quantization_config` that `numbers` cannot read.
    package: the library that it needs, if any, and the version from which on.
    """

    numbers: Callable[[Held, Mapping[str, Any]], dict[str, Tensor]]
    check: Callable[[Mapping[str, Any]], None] = lambda _: None
    package: str | None = None
    least: str | None = None
