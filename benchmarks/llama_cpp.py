"""Files of llama.cpp by its own quantizer and by laconic: bytes, KL and perplexity in the engine, and speed.

The sizes are mixtures of types of llama.cpp. `llama-quantize` makes each of them from the original in 16 bits, without
and with an importance matrix. laconic makes a file of no more bytes than the second one, and of no more time by the
measured speed of each type, with types chosen by predicted losses, and solves for them. Importance matrix and laconic
read the same texts. The quality is judged on other texts by llama-perplexity, which runs the model as llama.cpp serves
it, on one thread.

    benchmarks/peers/llama_cpp.sh NODE_FOLDER
    benchmarks/peers/llama_cpp_tools.sh NODE_FOLDER FOLDER
    python -m benchmarks llama_cpp --model DIR --tools FOLDER/bin

A finished file is a line of benchmarks/results/llama_cpp.jsonl. An interrupted run continues; `--again` measures the
chosen cases again. `python -m benchmarks llama_cpp_tables` makes the tables.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import llama_cpp_make
from benchmarks.common import Cells
from benchmarks.large_models import commit_of
from benchmarks.large_models_process import measure
from benchmarks.llama_cpp_plan import types_of
from benchmarks.llama_cpp_tools import Tools
from benchmarks.llama_cpp_types import measure_types
from benchmarks.tables import ROOT
from laconic.system import processor

CELLS = Cells("llama_cpp", ("model", "size", "way"))
SIZES = ("Q4_0", "Q4_K_M", "Q3_K_M", "Q2_K")
PLAIN, IMATRIX = "llama-quantize", "llama-quantize, importance matrix"
LACONIC, YAQA, SPEED = "laconic", "laconic, yaqa", "speed"
WAYS = (PLAIN, IMATRIX, LACONIC, YAQA, SPEED)
ROWS, INPUT_ROWS, GRADIENT_ROWS, CHUNKS = 16, 8, 2, 6
"""Texts of the importance matrix, those of laconic's moments of inputs and of gradients, and chunks that judge."""
FOLDER = "laconic"
"""The folder of laconic's files."""
WORDS = 450
"""So many words that every calibration text has more than 512 tokens."""

Case = tuple[str, str, str]
"""A model, a size and a way: the fields that name a cell."""


def main(argv: Sequence[str]) -> None:
    """Measure every chosen case that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="a folder with safetensors; none is measured without")
    parser.add_argument("--tools", type=Path, default=Path("bin"), metavar="DIR", help="the folder of llama-quantize")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "laconic-llama-cpp")
    parser.add_argument("--again", action="store_true", help="measure the chosen cases again")
    options = parser.parse_args(argv)
    if options.model is not None:
        model = options.model.resolve()
        work = options.work.resolve() / model.name
        bench = Bench(model, Tools(options.tools.resolve()), work, tuple(options.sizes))
        cases = list(product([model.name], options.sizes, options.ways))
        if options.again:
            CELLS.remove(cases)
        bench.run_all(CELLS.missing(cases))
    print(CELLS)


@dataclass(frozen=True)
class Bench:
    """A run on one model.

    Args:
        model: its folder.
        tools: the programs of llama.cpp.
        work: the folder of texts and results.
        sizes: the sizes that are measured.
    """

    model: Path
    tools: Tools
    work: Path
    sizes: tuple[str, ...]

    def path(self, name: str) -> Path:
        """A file in the folder of the run."""
        return self.work / name

    def prepare(self) -> None:
        """Make what all cases share: texts, the original as a file, its logits, and the importance matrix."""
        self.work.mkdir(parents=True, exist_ok=True)
        write_texts(self.path("texts.txt"), self.path("held-out.txt"))
        if not self.path("original.gguf").exists():
            self.export(self.model, "original")
        if not self.path("original.logits").exists():
            unfinished = self.path("unfinished.logits")
            self.tools.write_logits(self.path("original.gguf"), self.path("held-out.txt"), CHUNKS, unfinished)
            unfinished.rename(self.path("original.logits"))
        imatrix = self.tools.imatrix(
            self.path("original.gguf"), self.path("texts.txt"), ROWS, self.path("unfinished.gguf")
        )
        self.once("imatrix.gguf", imatrix, "unfinished.gguf")

    def once(self, name: str, command: Sequence[str], unfinished: str) -> dict[str, Any]:
        """Make a file unless it exists, and return the seconds and the memory of making it."""
        notes = self.path(f"{name}.notes")
        if not self.path(name).exists():
            measured = self.measure(command)
            notes.write_text(json.dumps(measured))
            self.path(unfinished).rename(self.path(name))
        return json.loads(notes.read_text())

    def measure(self, command: Sequence[str]) -> dict[str, Any]:
        """The seconds and the memory of a command."""
        folder = self.path("process")
        shutil.rmtree(folder, ignore_errors=True)
        measured = measure(command, folder, {"PYTHONPATH": str(ROOT)})
        return {name: measured[name] for name in ("seconds", "cpu_seconds", "peak")}

    def run_all(self, cases: Sequence[Case]) -> None:
        """Measure some cases, and write each line as it is finished."""
        if cases:
            self.prepare()
        for case in cases:
            cell = self.run(*case[1:])
            CELLS.add(case, cell)
            print(describe(case, cell), flush=True)

    def run(self, size: str, way: str) -> dict[str, Any]:
        """Measure one file, or the speed of laconic's file and of the importance matrix's in turn."""
        made_by = {"commit": commit_of(ROOT), "processor": processor()}
        if way == SPEED:
            files = {name: self.make(size, name)[0] for name in (IMATRIX, LACONIC)}
            return {"speed": self.tools.speeds(files), **made_by}
        file, made = self.make(size, way)
        types = [kind for kind, _ in types_of(file).values()]
        return {
            "bytes": file.stat().st_size,
            "types": {kind: types.count(kind) for kind in sorted(set(types))},
            **self.tools.compare(file, self.path("original.logits")),
            "seconds": sum(one["seconds"] for one in made),
            "cpu_seconds": sum(one["cpu_seconds"] for one in made),
            "peak": max(one["peak"] for one in made),
            "rows": INPUT_ROWS if way == LACONIC else ROWS,
            "versions": {"llama.cpp": self.tools.version(), "torch": version("torch")},
            **made_by,
        }

    def make(self, size: str, way: str) -> tuple[Path, list[dict[str, Any]]]:
        """Make one file; the seconds and the memory of all that it took."""
        if way == IMATRIX:
            return self.peer(size), [self.notes("imatrix.gguf"), self.notes(f"{size}.gguf")]
        result = self.path("result.gguf")
        result.unlink(missing_ok=True)
        if way == PLAIN:
            return result, [self.measure(self.tools.quantize(self.path("original.gguf"), result, size))]
        self.compress(size)
        made = self.notes(f"{FOLDER}/{size}.gguf")
        if way == LACONIC:
            return self.path(f"{FOLDER}/{size}.gguf"), [made]
        streamed = self.path("streamed")
        shutil.rmtree(streamed, ignore_errors=True)
        solved = self.measure(laconic("run", self.path(f"{FOLDER}/{size}.yaml"), "-o", streamed))
        # The types that both files have are chosen by the program that makes the other one.
        return result, [made, solved, self.export(streamed, result.stem)]

    def notes(self, name: str) -> dict[str, Any]:
        """The seconds and the memory of making a shared file."""
        return json.loads(self.path(f"{name}.notes").read_text())

    def peer(self, size: str) -> Path:
        """The file of llama.cpp's quantizer with the importance matrix."""
        original, imatrix, unfinished = map(self.path, ("original.gguf", "imatrix.gguf", "unfinished.gguf"))
        self.once(f"{size}.gguf", self.tools.quantize(original, unfinished, size, imatrix), unfinished.name)
        return self.path(f"{size}.gguf")

    def compress(self, size: str) -> None:
        """Make laconic's file of a size, unless it exists, and with it those of the sizes that are measured later."""
        folder = self.path(FOLDER)
        wanted = [own for own in self.sizes if not (folder / f"{own}.gguf.notes").exists()]
        if size in wanted:
            folder.mkdir(exist_ok=True)
            measure_types(self.tools, self.path("types"))
            rows = (INPUT_ROWS, GRADIENT_ROWS)
            given = (self.model, self.path("texts.txt"), *rows, folder, *map(self.peer, wanted))
            self.measure((sys.executable, "-m", llama_cpp_make.__name__, *map(str, given)))

    def export(self, source: Path, name: str) -> dict[str, Any]:
        """Write a folder as a file of this name; the seconds and the memory of it."""
        folder = self.path("exported")
        shutil.rmtree(folder, ignore_errors=True)
        measured = self.measure(laconic("export", source, "--to", "gguf", "-o", folder))
        (folder / "model.gguf").rename(self.path(f"{name}.gguf"))
        return measured


def laconic(*arguments: object) -> tuple[str, ...]:
    """The command line of laconic."""
    return (sys.executable, "-m", "laconic", *map(str, arguments))


def write_texts(calibration: Path, held_out: Path) -> None:
    """Write the texts that calibrate, of wikitext's training split, and those that judge, its test split."""
    folder = Path(os.environ.get("LACONIC_DATA", "../shared/data")) / "wikitext-2"
    passages = json.loads((folder / "wikitext103_train_passages_1000.json").read_text())
    words = re.sub(r"\s*\n\s*", " \n", " ".join(passages)).split(" ")
    texts = [" ".join(words[start : start + WORDS]) for start in range(0, ROWS * WORDS, WORDS)]
    calibration.write_text("\n\n".join(text.strip() for text in texts) + "\n")
    held_out.write_text((folder / "wiki.test.tokens").read_text())


def describe(case: Case, cell: dict[str, Any]) -> str:
    """One line for a finished case."""
    if "speed" in cell:
        decode = (f"{way} {max(speed['decode']):.1f}" for way, speed in cell["speed"].items())
        return f"{' × '.join(case)}: {', '.join(decode)} tokens a second"
    return f"{' × '.join(case)}: {cell['bytes'] / 1e6:.1f} MB, KL {cell['kl'][0]:.5f} ± {cell['kl'][1]:.5f}"
