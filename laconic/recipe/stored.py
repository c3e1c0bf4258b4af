"""Ways to store the matrices of a model that each runtime computes with, for `laconic advise`.

A way is named by a method without data, because speed does not depend on the values. `best` is the method that stores
the same bytes with the smallest loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """One way to store matrices.

    Args:
        label: the name in tables.
        method: a method without data, as `--method` takes it.
        keep: fraction of the bytes, for methods with a size.
        best: the method that loses least with the same bytes, as `--method` takes it.

    Example:
        >>> Stored("low rank, half of the bytes", "svd", 0.5, "kfac-svd").options
        '--method kfac-svd --keep 0.5'
    """

    label: str
    method: str
    keep: float | None
    best: str

    @property
    def options(self) -> str:
        """The options of `laconic compress`."""
        return f"--method {self.best}" + ("" if self.keep is None else f" --keep {self.keep:g}")


def _codes(label: str, parameters: str) -> Stored:
    return Stored(label, f"rtn:{parameters}", None, f"gptq:{parameters}")


LOW_RANK = Stored("low rank, half of the bytes", "svd", 0.5, "kfac-svd")
INT8 = Stored("8 bits, inputs rounded too", "dynamic-int8", None, "dynamic-int8")
GRAPH = (LOW_RANK, INT8, _codes("4 bits, groups of 32", "bits=4,group_size=32,symmetric=true"))
STORED: Mapping[str, tuple[Stored, ...]] = {
    "eager": GRAPH,
    "compile": GRAPH,
    "onnx": GRAPH,
    "openvino": GRAPH,
    "llama.cpp": tuple(
        _codes(grid, f"grid={grid}") for grid in ("q8_0", "q6_k", "q5_0", "q4_k", "q4_0", "q3_k", "q2_k")
    ),
    "vllm": (
        INT8,
        _codes("8 bits", "bits=8,group_size=128,symmetric=true"),
        _codes("4 bits, groups of 128", "bits=4,group_size=128,symmetric=true"),
        _codes("4 bits, groups of 32", "bits=4,group_size=32,symmetric=true"),
    ),
}
"""The ways of each runtime, the largest first."""
