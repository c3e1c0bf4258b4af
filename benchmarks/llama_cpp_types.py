"""CPU seconds that llama.cpp takes for a weight of each of its types when it writes a token, on one thread.

The quantizer makes a file of each type, pure as far as the widths of the matrices allow. All files are measured in
turn. The time of a token is a sum over the types of a file, and the times of all files are solved for those of the
types. What does not depend on the types, such as attention, is part of the time of every weight, so the times of two
files of one model differ by the right amount.

`python -m benchmarks llama_cpp` measures them before laconic chooses types. They are the lines of
benchmarks/results/llama_cpp_types.jsonl.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import Cells
from benchmarks.large_models import commit_of
from benchmarks.llama_cpp_plan import EMBEDDING, types_of, weights_of
from benchmarks.llama_cpp_tools import Tools
from benchmarks.tables import ROOT
from laconic.system import processor

CELLS = Cells("llama_cpp_types", ("model", "made_as"))
PURE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q8_0", "Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K")

MEGABYTE = 1 << 20


def measure_types(model: str, original: Path, tools: Tools, folder: Path) -> None:
    """Measure the speed of a pure file of each type, unless all have a line.

    Args:
        model: the name of the model.
        original: its file in 16 bits.
        tools: the programs of llama.cpp.
        folder: where the files are made; they are removed when they are measured.
    """
    if not CELLS.missing([(model, kind) for kind in PURE]):
        return
    folder.mkdir(exist_ok=True)
    files = {kind: folder / f"{kind}.gguf" for kind in PURE}
    for kind, file in files.items():
        if not file.exists():
            tools.quantize_purely(original, folder / "unfinished.gguf", kind)
            (folder / "unfinished.gguf").rename(file)
    seconds = tools.cpu_seconds(files)
    made_by = {"versions": {"llama.cpp": tools.version()}, "commit": commit_of(ROOT), "processor": processor()}
    CELLS.remove([(model, kind) for kind in PURE])
    for kind, file in files.items():
        CELLS.add((model, kind), {"weights": computed(file), "cpu_seconds": seconds[kind], **made_by})
        file.unlink()


def computed(file: Path) -> dict[str, int]:
    """The number of weights of each type that a file multiplies every token by, so without the word embedding.

    Raises:
        ValueError: the word embedding is the head too, so the file has no time of its own for it.
    """
    types = types_of(file)
    if "output.weight" not in types:
        raise ValueError(f"{file} has no head of its own; the times of its types cannot be told apart.")
    counts: dict[str, int] = {}
    for name, (kind, nbytes) in types.items():
        if kind != "f32" and name != EMBEDDING:
            counts[kind] = counts.get(kind, 0) + weights_of(kind, nbytes)
    return counts


def seconds_a_weight(model: str) -> dict[str, float]:
    """The CPU seconds of a weight of each type in decoding, from the median of the rounds of each file.

    Each is a difference of two runs, so the least of them is an outlier and no best run.

    Args:
        model: the name of a model whose types are measured.
    """
    cells = CELLS.where(model=model)
    return solve_times([cell["weights"] for cell in cells], [median(cell["cpu_seconds"]) for cell in cells])


def solve_times(weights: Sequence[Mapping[str, int]], seconds: Sequence[float]) -> dict[str, float]:
    """Solve the times of files for those of their types, by least squares.

    Args:
        weights: the number of weights of each type, for each file.
        seconds: the seconds of a token, for each file.

    Example:
        >>> solve_times([{"q4_0": 4}, {"q4_0": 2, "q8_0": 2}], [4.0, 6.0])
        {'q4_0': 1.0, 'q8_0': 2.0}
    """
    kinds = list(dict.fromkeys(kind for counts in weights for kind in counts))
    A = torch.tensor([[counts.get(kind, 0) for kind in kinds] for counts in weights], dtype=torch.float64)
    scale = A.sum(1).max()
    b = torch.tensor(seconds, dtype=torch.float64)[:, None]
    solved = torch.linalg.lstsq(A / scale, b, driver="gelsd").solution[:, 0] / scale
    return {kind: round(value, 18) for kind, value in zip(kinds, solved.tolist(), strict=True)}


def table_rows(model: str) -> list[tuple[str, ...]]:
    """The type, its bits and its picoseconds a weight, fastest first."""
    seconds = seconds_a_weight(model) if CELLS.where(model=model) else {}
    return [
        (kind, f"{8 * MEGABYTE / weights_of(kind, MEGABYTE):.2f}", f"{1e12 * value:.1f}")
        for kind, value in sorted(seconds.items(), key=lambda item: item[1])
    ]
