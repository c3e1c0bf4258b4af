"""A language model in vLLM on one thread: laconic's folders beside those of llm-compressor's GPTQ.

Both calibrate on the same rows and are judged on other texts. Four steps, which can run one by one:

- `make` compresses, each in a process of its own;
- `exact` computes KL(original ‖ compressed) in torch, from all logits;
- `engine` computes it from what vLLM predicts itself, a lower bound (`laconic.runtime.engine.distributions`);
- `speed` measures prefill and decode, with all models loaded and in turns, beside the original in eager transformers.

    benchmarks/peers/vllm_cpu.sh VLLM
    benchmarks/peers/llm_compressor.sh PEER
    LACONIC_VLLM=VLLM/bin/python python -m benchmarks vllm --model DIR --peer PEER/bin/python

A finished measurement is a line of benchmarks/results/vllm.jsonl. An interrupted run continues; `--again` measures the
chosen ways and steps again. Compressed folders stay below `--work`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from benchmarks import vllm_quality, vllm_speed
from benchmarks.common import Cells
from benchmarks.large_models import PEER_SCRIPT, commit_of
from benchmarks.large_models_files import check_held_out, write_rows, write_texts
from benchmarks.large_models_process import measure
from benchmarks.tables import ROOT
from laconic.system import processor

CELLS = Cells("vllm", ("model", "step", "way"))
ROWS, TOKENS, BATCH = 16, 128, 16
"""Calibration rows, the tokens of each, and rows in a batch."""
EAGER = "original, eager transformers"
MAKE, EXACT, ENGINE, SPEED = "make", "exact", "engine", "speed"
STEPS = (MAKE, EXACT, ENGINE, SPEED)
FOUR_BITS = {"compress": {"method": {"gptq": {"bits": 4, "group_size": 128, "symmetric": True}}}}
INT8_QKV = {"compress": {"method": "dynamic-int8", "targets": ["*q_proj", "*k_proj", "*v_proj"]}}
YAQA = {"compress": {"method": {"yaqa": {"bits": 4, "group_size": 128, "symmetric": True}}}}
OTHERS = {"compress": {**FOUR_BITS["compress"], "targets": ["*o_proj", "*gate_proj", "*up_proj", "*down_proj"]}}
Outcome = Mapping[str, Any]


@dataclass(frozen=True)
class Way:
    """A way to compress a model.

    Args:
        scheme: how weights and inputs are stored, by vLLM's names.
        steps: the steps of laconic's recipe; empty for llm-compressor.
        peer: the name of the scheme in the script of llm-compressor; empty for laconic.
        stream: whether one block at a time is in memory.
    """

    scheme: str
    steps: tuple[Outcome, ...] = ()
    peer: str = ""
    stream: bool = False


WAYS: dict[str, Way] = {
    "llm-compressor W4A16": Way("W4A16", peer="W4A16"),
    "laconic W4A16": Way("W4A16", (FOUR_BITS,), stream=True),
    "laconic W4A16, yaqa": Way("W4A16", (YAQA,), stream=True),
    "laconic W4A16, W8A8 for queries, keys and values": Way("W4A16", (INT8_QKV, OTHERS), stream=True),
    "llm-compressor W8A8": Way("W8A8", peer="W8A8"),
    "llm-compressor W8A8, smoothquant": Way("W8A8", peer="W8A8, smoothed"),
    "laconic W8A8": Way(
        "W8A8", ({"smoothquant": {"alpha": 0.5}}, {"compress": {"method": "dynamic-int8"}}), stream=True
    ),
}


def main(argv: Sequence[str]) -> None:
    """Run the chosen steps for the chosen ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a causal language model")
    parser.add_argument("--peer", type=Path, help="the Python of llm-compressor's environment")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "laconic-vllm")
    parser.add_argument("--again", action="store_true", help="measure the chosen ways and steps again")
    options = parser.parse_args(argv)
    bench = Bench(options.model.resolve(), options.work.resolve(), options.peer)
    if options.again:
        chosen = (EAGER, *options.ways)
        CELLS.remove([(bench.model.name, step, way) for step in options.steps for way in chosen])
    bench.write_texts()
    if MAKE in options.steps:
        for way in bench.missing(MAKE, [way for way in options.ways if not WAYS[way].peer or bench.peer]):
            bench.add(MAKE, {way: bench.make(way)})
    made = [way for way in options.ways if bench.folder(way).exists()]
    if EXACT in options.steps and (missing := bench.missing(EXACT, made)):
        bench.add(EXACT, bench.judge(vllm_quality.EXACT, missing))
    if ENGINE in options.steps and (missing := bench.missing(ENGINE, made)):
        bench.add(ENGINE, bench.judge(vllm_quality.ENGINE, missing))
    if SPEED in options.steps and bench.missing(SPEED, made):
        folders = {EAGER: bench.model, **{way: bench.folder(way) for way in made}}
        found = vllm_speed.measure_in_turns(folders, EAGER)
        CELLS.remove([(bench.model.name, SPEED, way) for way in found])
        bench.add(SPEED, found)
    print(CELLS)


@dataclass(frozen=True)
class Bench:
    """The model and the folders of a run.

    Args:
        model: the folder of the original.
        work: the folder of texts and results.
        peer: the Python of llm-compressor's environment; None to leave it out.
    """

    model: Path
    work: Path
    peer: Path | None

    @property
    def texts(self) -> Path:
        """The file of the texts: calibration rows are drawn from it, and models are judged on its end."""
        return self.work / "texts.txt"

    def folder(self, way: str) -> Path:
        """The folder that vLLM reads."""
        return self.work / self.model.name / way.replace(", ", "--").replace(" ", "-") / "served"

    def write_texts(self) -> None:
        """Write the texts, and the rows that llm-compressor reads."""
        write_texts(self.texts)
        check_held_out(self.texts, ROWS, vllm_quality.ROWS)
        write_rows(self.model, self.texts, self.work / "rows.json", ROWS, TOKENS)

    def missing(self, step: str, ways: Sequence[str]) -> list[str]:
        """The ways that have no line of a step."""
        return [key[2] for key in CELLS.missing([(self.model.name, step, way) for way in ways])]

    def add(self, step: str, found: Mapping[str, Outcome]) -> None:
        """Write and print the lines of a step."""
        for way, cell in found.items():
            CELLS.add((self.model.name, step, way), {**cell, "processor": processor()})
            print(f"{step}: {way}: {json.dumps(cell)}", flush=True)

    def make(self, way: str) -> Outcome:
        """Compress in one way, and export what laconic compressed."""
        folder = self.folder(way)
        shutil.rmtree(folder.parent, ignore_errors=True)
        spec = WAYS[way]
        if spec.peer:
            rows = str(self.work / "rows.json")
            command = (str(self.peer), str(PEER_SCRIPT), str(self.model), rows, str(folder), spec.peer)
            names = ("llmcompressor", "compressed-tensors", "torch", "transformers")
            listed = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
            measured = measure(command, folder.parent / "run", {})
            versions = json.loads(subprocess.check_output([str(self.peer), "-c", listed], text=True))
            return {**measured, **stored_bytes(folder, self.model), "versions": versions}
        recipe = {
            "model": str(self.model),
            "data": str(self.texts),
            "samples": ROWS,
            "max_length": TOKENS,
            "batch_size": BATCH,
            "stream": spec.stream,
            "steps": list(spec.steps),
        }
        folder.parent.mkdir(parents=True)
        (folder.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        small = folder.parent / "small"
        program, environment = (sys.executable, "-m", "laconic"), {"PYTHONPATH": str(ROOT)}
        command = (*program, "run", str(folder.parent / "recipe.yaml"), "-o", str(small))
        measured = measure(command, folder.parent / "run", environment)
        command = (*program, "export", str(small), "--to", "compressed-tensors", "-o", str(folder))
        exported = measure(command, folder.parent / "export", environment)
        return {
            **measured,
            "export_cpu_seconds": exported["cpu_seconds"],
            **stored_bytes(folder, self.model),
            "recipe": recipe["steps"],
            "commit": commit_of(ROOT),
            "versions": {name: version(name) for name in ("torch", "transformers", "compressed-tensors")},
        }

    def judge(self, kind: str, ways: Sequence[str]) -> Mapping[str, Outcome]:
        """The distances of ways from the original, measured in a process of its own."""
        folders = {way: str(self.folder(way)) for way in ways}
        command = [sys.executable, "-m", vllm_quality.__name__, kind, str(self.model), str(self.texts)]
        done = subprocess.run([*command, json.dumps(folders)], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        return json.loads(done.stdout.splitlines()[-1])


def stored_bytes(folder: Path, original: Path) -> dict[str, int]:
    """Bytes of all tensors, and of the matrices that are not stored as in the original, with their scales."""
    before, after = tensors_of(original), tensors_of(folder)
    changed = {name for name, tensor in before.items() if after.get(name) != tensor}
    modules = {name.removesuffix(".weight") for name in changed}
    inside = {name: nbytes for name, (_, nbytes) in after.items() if name.rpartition(".")[0] in modules}
    return {
        "bytes": sum(nbytes for _, nbytes in after.values()),
        "matrix_bytes": sum(size for name, size in inside.items() if not name.endswith((".bias", "weight_shape"))),
        "matrix_weights": sum(before[name][0] for name in changed),
    }


def tensors_of(folder: Path) -> dict[str, tuple[int, int]]:
    """The numbers and the bytes of each tensor in a folder, from the headers of its files."""
    widths = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (the file is no mapping)
                part = tensors.get_slice(name)
                count = prod(part.get_shape())
                found[name] = (count, count * widths[part.get_dtype()])
    return found
