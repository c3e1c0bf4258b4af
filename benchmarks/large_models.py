"""Memory, time and disk of compressing models of growing size, in memory and one block at a time (`--stream`).

Each case runs `laconic compress` in a process of its own, on one thread. Models are Llamas with random weights, which
the benchmark writes, and folders that `--model` names. 16 rows of 128 tokens are read. `--build` also runs the laconic
of another worktree, so that two versions are measured in the same run:

    git worktree add /tmp/before COMMIT
    python -m benchmarks large_models --build /tmp/before

`--peer` also runs the GPTQ of llm-compressor on the same rows, in the Python of its own environment:

    benchmarks/peers/llm_compressor.sh FOLDER
    python -m benchmarks large_models --peer FOLDER/bin/python

A finished case is a line of benchmarks/results/large_models.jsonl. An interrupted run continues; `--again` measures the
chosen cases again. The results of a model and method are compared with each other, and then removed.

The mode `killed` is `stream`, but the process is killed in three random blocks, and the same command goes on.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import product
from math import prod
from pathlib import Path
from random import Random
from typing import Any

from safetensors import safe_open

from benchmarks import large_models_results
from benchmarks.common import Cells
from benchmarks.large_models_files import SHAPES, check_held_out, write_model, write_rows, write_texts
from benchmarks.large_models_process import measure
from benchmarks.tables import ROOT
from laconic.system import processor

CELLS = Cells("large_models", ("model", "method", "build", "mode"))
METHODS: dict[str, tuple[str, ...]] = {
    "gptq": ("--method", "gptq:bits=4,group_size=64"),
    "kfac-svd": ("--method", "kfac-svd", "--keep", "0.5", "--allocate", "spectrum"),
    # A block of the 0.5B takes minutes: three eigendecompositions of 4,864 features. Memory is that of one block.
    "kfac-prune": ("--method", "kfac-prune:sparsity=0.5", "--targets", r"re:\.[0-3]\."),
    "yaqa": ("--method", "yaqa:bits=4,group_size=64"),
    "rtn": ("--method", "rtn:bits=4,group_size=64"),
}
ROWS, TOKENS = 16, 128
DATA = ("--samples", str(ROWS), "--max-length", str(TOKENS), "--batch-size", "16")
WITHOUT_DATA = ("rtn",)
MEMORY, STREAM, KILLED = "memory", "stream", "killed"
MODES = (MEMORY, STREAM, KILLED)
KILLS, KILL_SEED = 3, 0
NOW, BEFORE, PEER = "now", "before", "llm-compressor"
PEER_SCRIPT = ROOT / "benchmarks/peers/llm_compressor_folder.py"
PEER_METHOD = "gptq"
RESULT = "result"
IMPORTS = "import laconic.api.compress"
"""A program that only imports what `laconic compress` needs."""


Case = tuple[str, str, str, str]
"""A model, a method, a build and a mode: the fields that name a cell."""


def main(argv: Sequence[str]) -> None:
    """Measure every chosen case that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    small = [name for name in SHAPES if name != "7B"]
    parser.add_argument("--sizes", nargs="*", choices=list(SHAPES), default=small, help="7B needs 40 GB of disk")
    parser.add_argument("--model", type=Path, nargs="*", default=[], metavar="DIR", help="further models")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[MEMORY, STREAM])
    parser.add_argument("--build", type=Path, help="a worktree of an earlier laconic, to measure in memory too")
    parser.add_argument("--peer", type=Path, help="the Python of llm-compressor's environment")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "laconic-large-models")
    parser.add_argument("--again", action="store_true", help="measure the chosen cases again")
    options = parser.parse_args(argv)
    models = {name: options.work / "models" / name for name in options.sizes}
    models |= {path.name: path.resolve() for path in options.model}
    builds = {BEFORE: options.build.resolve()} if options.build else {}
    bench = Bench(options.work, models, {**builds, NOW: ROOT}, options.peer)
    write_texts(bench.texts)
    check_held_out(bench.texts, ROWS, large_models_results.ROWS)
    for name in options.sizes:
        write_model(SHAPES[name], models[name])
    cases = list(choose(models, options.methods, [*bench.builds, *([PEER] if options.peer else [])], options.modes))
    if options.again:
        CELLS.remove(cases)
    for case in CELLS.missing(cases):
        cell = bench.run(case)
        CELLS.add(case, cell)
        print(describe(case, cell), flush=True)
        bench.clean(case, CELLS.missing(cases))
    print(CELLS)


def choose(
    models: Iterable[str], methods: Sequence[str], builds: Iterable[str], modes: Sequence[str]
) -> Iterator[Case]:
    """The cases in order; those whose results are compared are neighbours.

    Earlier builds run in memory only, and llm-compressor runs one method, in its own way.
    """
    for model, method, build, mode in product(models, methods, builds, modes):
        if build == PEER:
            if (method, mode) == (PEER_METHOD, modes[0]):
                yield model, method, build, MEMORY
        elif build == NOW or mode == MEMORY:
            yield model, method, build, mode


@dataclass(frozen=True)
class Bench:
    """The folders of a run.

    Args:
        work: the folder of models, texts and results.
        models: the folder of each model.
        builds: the worktree of each laconic.
        peer: the Python of llm-compressor's environment; None to leave it out.
    """

    work: Path
    models: Mapping[str, Path]
    builds: Mapping[str, Path]
    peer: Path | None = None

    @property
    def texts(self) -> Path:
        """The file of the calibration texts."""
        return self.work / "texts.txt"

    def folder(self, case: Case) -> Path:
        """The folder in which a case runs."""
        return self.work / "runs" / "--".join(case)

    def run(self, case: Case) -> dict[str, Any]:
        """Run one case, and compare its result with the original and with the result in memory."""
        model, method, build, mode = case
        folder = self.folder(case)
        shutil.rmtree(folder, ignore_errors=True)
        measured = self.measure_peer(case) if build == PEER else self.measure_laconic(case)
        # A killed run equals a streamed one, and a streamed one equals the one in memory.
        reference = {MEMORY: None, STREAM: MEMORY, KILLED: STREAM}[mode]
        beside = reference and self.folder((model, method, build, reference)) / RESULT
        compared = self.compare(model, folder / RESULT, beside)
        return {
            **measured,
            "bytes": sum(file.stat().st_size for file in (folder / RESULT).glob("*.safetensors")),
            **compared,
            **count_parameters(self.models[model]),
            "processor": processor(),
        }

    def measure_laconic(self, case: Case) -> dict[str, Any]:
        """Run `laconic compress` of one build."""
        model, method, build, mode = case
        data = () if method in WITHOUT_DATA else ("--data", str(self.texts), *DATA)
        options = (*METHODS[method], *data, *([] if mode == MEMORY else ["--stream"]), "-o", RESULT)
        command = (sys.executable, "-m", "laconic", "compress", str(self.models[model]), *options)
        kills = draw_kills(count_parameters(self.models[model])["blocks"]) if mode == KILLED else []
        return {
            **measure(command, self.folder(case), {"PYTHONPATH": str(self.builds[build])}, kills),
            "kills": kills,
            "imports": measure_imports(self.builds[build]),
            "commit": commit_of(self.builds[build]),
            "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")},
        }

    def measure_peer(self, case: Case) -> dict[str, Any]:
        """Run llm-compressor on the rows that laconic reads."""
        rows, source = self.work / f"rows-{case[0]}.json", self.models[case[0]]
        write_rows(source, self.texts, rows, ROWS, TOKENS)
        names = ("llmcompressor", "torch", "transformers")
        listed = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
        return {
            **measure((str(self.peer), str(PEER_SCRIPT), str(source), str(rows), RESULT), self.folder(case), {}),
            "versions": json.loads(subprocess.check_output([str(self.peer), "-c", listed], text=True)),
        }

    def compare(self, model: str, result: Path, reference: Path | None) -> dict[str, Any]:
        """KL to the original, and whether the result equals the reference; that is missing without `reference`."""
        beside = ["--reference", str(reference)] if reference is not None and reference.exists() else []
        command = [sys.executable, "-m", large_models_results.__name__, str(self.models[model]), str(result)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, str(self.texts), *beside], env=variables, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
        )
        return json.loads(done.stdout)

    def clean(self, case: Case, missing: Sequence[Case]) -> None:
        """Remove the results of a model and method that no further case is compared with."""
        if not any(other[:2] == case[:2] for other in missing):
            for folder in (self.work / "runs").glob(f"{case[0]}--{case[1]}--*"):
                shutil.rmtree(folder)


def draw_kills(blocks: int) -> list[float]:
    """Draw random moments at which a run is killed, each in a block of its own, and none in the first.

    Args:
        blocks: the number of blocks of the model.

    Returns:
        Ascending numbers of finished blocks; 2.5 is halfway through the third one.
    """
    random = Random(KILL_SEED)
    return sorted(block + random.random() for block in random.sample(range(1, blocks), KILLS))


@cache
def measure_imports(worktree: Path) -> dict[str, Any]:
    """Seconds and memory of a process that only imports a laconic."""
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-c", IMPORTS)
        measured = measure(command, Path(folder) / "imports", {"PYTHONPATH": str(worktree)})
    return {name: measured[name] for name in ("cpu_seconds", "peak", "anonymous")}


def count_parameters(folder: Path) -> dict[str, int]:
    """The parameters of a model, and those of its largest block, from the headers of its files."""
    blocks: dict[str, int] = {}
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (the file is no mapping)
                size = prod(tensors.get_slice(name).get_shape())
                total += size
                if found := re.search(r"layers\.(\d+)\.", name):
                    blocks[found[1]] = blocks.get(found[1], 0) + size
    return {"parameters": total, "block_parameters": max(blocks.values()), "blocks": len(blocks)}


def commit_of(worktree: Path) -> str:
    """The last commit that changed laconic in a worktree, with a plus if it was changed since."""
    last = ["git", "log", "-1", "--format=%h", "--", "laconic"]
    commit = subprocess.check_output(last, cwd=worktree, text=True).strip()
    changed = subprocess.check_output(["git", "status", "--porcelain", "laconic"], cwd=worktree, text=True)
    return commit + "+" * bool(changed)


def describe(case: Case, cell: Mapping[str, Any]) -> str:
    """One line for a finished case."""
    equal = {None: "", 0: ", equal to its reference"}.get(
        len(cell["unequal"]) if "unequal" in cell else None, f", {len(cell.get('unequal', ()))} tensors differ"
    )
    return (
        f"{' × '.join(case)}: {cell['cpu_seconds']:.0f} s of CPU, {cell['seconds']:.0f} s, "
        f"peak {cell['peak'] / 2**20:.0f} MiB ({cell['anonymous'] / 2**20:.0f} anonymous), "
        f"scratch {cell['scratch'] / 2**20:.0f} MiB, KL {cell['kl']:.2g}{equal}"
    )
