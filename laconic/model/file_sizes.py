"""The sizes of a model in the files of another library, whose codes laconic may store otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FileSizes:
    """The bytes of a model in its files.

    Args:
        total: bytes of all weight files.
        matrices: bytes of the tensors of each matrix (codes, scales, zero points), without its bias, by the path of its
            module.

    Example:
        >>> FileSizes(200, matrix_bytes({"proj.weight": 64, "proj.weight.absmax": 16, "proj.bias": 8})).matrices
        {'proj': 80}
    """

    total: int
    matrices: Mapping[str, int]


def matrix_bytes(tensors: Mapping[str, int]) -> dict[str, int]:
    """The bytes of each module without its bias.

    Args:
        tensors: the bytes of every tensor, by name. A name is the path of the module, and what the tensor is to it.
    """
    sizes: dict[str, int] = {}
    for name, nbytes in tensors.items():
        module, inside, _ = name.partition(".weight.")
        if not inside:
            module, _, last = name.rpartition(".")
            if last == "bias":
                continue
        sizes[module] = sizes.get(module, 0) + nbytes
    return sizes
