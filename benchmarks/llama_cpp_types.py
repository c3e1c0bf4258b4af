"""The time that llama.cpp takes for a weight of each of its types, for writing and for reading a token, on one thread.

The widths of the matrices of many models allow some types only in a few matrices. So the times are those of a Llama of
random weights (12 blocks, 1024 and 4096 wide), of which the quantizer makes a pure file of each type. All files are
measured in turn. What does not depend on the types, such as attention, is part of the time of every weight, so the
times of two files of one model differ by the right amount.

`python -m benchmarks llama_cpp` measures them before laconic chooses types. They are the lines of
benchmarks/results/llama_cpp_types.jsonl.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.common import Cells, models_folder
from benchmarks.large_models import commit_of
from benchmarks.llama_cpp_plan import EMBEDDING, types_of, weights_of
from benchmarks.llama_cpp_tools import Tools
from benchmarks.tables import ROOT
from laconic.system import processor

CELLS = Cells("llama_cpp_types", ("made_as",))
PURE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q8_0", "Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K")
TOKENIZER = "stories260K"
"""The model whose tokenizer, of 512 words, the random Llama has."""

MEGABYTE = 1 << 20


def measure_types(tools: Tools, folder: Path) -> None:
    """Measure the speed of a pure file of each type, unless all have a line.

    Args:
        tools: the programs of llama.cpp.
        folder: where the files are made; it is removed when they are measured.
    """
    if not CELLS.missing([(kind,) for kind in PURE]):
        return
    original = write_wide_model(folder)
    files = {kind: folder / f"{kind}.gguf" for kind in PURE}
    for kind, file in files.items():
        tools.quantize_purely(original, file, kind)
    speeds = tools.speeds(files)
    made_by = {"versions": {"llama.cpp": tools.version()}, "commit": commit_of(ROOT), "processor": processor()}
    CELLS.remove([(kind,) for kind in PURE])
    for kind, file in files.items():
        stored, weights = computed(file)
        CELLS.add((kind,), {"type": stored, "weights": weights, **speeds[kind], **made_by})
    shutil.rmtree(folder)


def write_wide_model(folder: Path) -> Path:
    """Write a Llama of random weights whose widths allow every type, and return its file in 16 bits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    shutil.rmtree(folder, ignore_errors=True)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(models_folder() / TOKENIZER).save_pretrained(folder / "model")
    command = (sys.executable, "-m", "laconic", "export", folder / "model", "--to", "gguf", "-o", folder / "original")
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
    return folder / "original" / "model.gguf"


def computed(file: Path) -> tuple[str, int]:
    """The type of a pure file, and the number of weights that it multiplies every token by, without the word embedding.

    Raises:
        ValueError: the matrices have several types.
    """
    matrices = {name: kind for name, kind in types_of(file).items() if kind[0] != "f32"}
    kinds = {kind for kind, _ in matrices.values()}
    if len(kinds) > 1:
        raise ValueError(f"{file} has matrices of several types: {', '.join(sorted(kinds))}.")
    (kind,) = kinds
    return kind, sum(weights_of(kind, nbytes) for name, (_, nbytes) in matrices.items() if name != EMBEDDING)


def seconds_a_weight(phase: str = "decode") -> dict[str, float]:
    """The seconds of a weight of each type in the best round, because other load only adds time.

    Args:
        phase: `decode` for writing a token, `prefill` for reading one of many.
    """
    return {cell["type"]: 1 / max(cell[phase]) / cell["weights"] for cell in CELLS}


def table_rows() -> list[tuple[str, ...]]:
    """The type, its bits, and its picoseconds a weight in writing and in reading, fastest first."""
    decode, prefill = seconds_a_weight("decode"), seconds_a_weight("prefill")
    return [
        (kind, f"{8 * MEGABYTE / weights_of(kind, MEGABYTE):.2f}", f"{1e12 * value:.1f}", f"{1e12 * prefill[kind]:.1f}")
        for kind, value in sorted(decode.items(), key=lambda item: item[1])
    ]
