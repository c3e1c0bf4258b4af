"""laconic's files for llama.cpp, each in the bytes and the time of another file, from one measurement of a model.

    python -m benchmarks.llama_cpp_make MODEL TEXTS ROWS GRADIENT_ROWS FOLDER FILE…

For each FILE, such as Q4_0.gguf, FOLDER/Q4_0.gguf gets at most its bytes and its predicted time of a token. The moments
of the inputs are measured on the first ROWS texts, those of the gradients on GRADIENT_ROWS. They do not depend on the
size, nor does a matrix that has the same type in several files, so each is made once. `gptq` solves the matrices; in
8 bits, and for a word embedding, whose inputs never occur together, it has nothing to compensate for, and weights are
rounded to the nearest values.

FOLDER/Q4_0.gguf.notes has the seconds and the memory of the program up to this file. FOLDER/Q4_0.yaml is a recipe that
solves for the same types by `yaqa`, one block at a time.
"""

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml

from benchmarks.llama_cpp_plan import choose_types, limits_of, matrices, matrix_types, predict
from benchmarks.llama_cpp_types import seconds_a_weight
from laconic.calibrate import Calibration, GradCovariance, InputCovariance, LayerStats, collect_stats
from laconic.calibrate.batching import batches
from laconic.calibrate.sources import read
from laconic.export.gguf.checks import check_gguf
from laconic.export.gguf.target import write_numbers
from laconic.formats import Format
from laconic.methods import Gptq, Rtn
from laconic.model import LanguageModel, Site, load
from laconic.typed import construct

TOKENS = 512
NEARLY_EXACT = "q8_0"

Types = dict[str, str]
"""The type of each matrix, by its path."""


class GradSquares(GradCovariance):
    """The diagonal of F, which is all that the predictions need."""

    @classmethod
    def empty(cls, shape: tuple[int, int], device: torch.device) -> "GradSquares":
        return cls(torch.zeros(shape[0], dtype=torch.float64, device=device))


def main(model: str, texts: str, rows: str, gradient_rows: str, folder: str, *files: str) -> None:
    """Write a file for each of the others."""
    torch.set_num_threads(1)
    clock = Clock()
    lm = load(model)
    sites = matrices(lm)
    inputs = collect_stats(lm, corpus(lm, texts, int(rows)), {InputCovariance}, sites)
    clock.show("moments of inputs")
    squares = collect_stats(lm, corpus(lm, texts, int(gradient_rows)), {GradSquares}, sites)
    clock.show("moments of gradients")
    seconds = seconds_a_weight()
    offers = {
        site.name: predict(site, inputs[site.name][InputCovariance], squares.pop(site.name)[GradSquares], seconds)
        for site in sites
    }
    losses = {name: {kind: option.loss for kind, option in options.items()} for name, options in offers.items()}
    Path(folder, "losses.json").write_text(json.dumps(losses, indent=1) + "\n")
    clock.show("predictions")
    plans: dict[str, Types] = {}
    for file in map(Path, files):
        plans[file.name] = choose_types(offers, limits_of(matrix_types(Path(model), file), sites, seconds))
    clock.show("types")
    for name, types in plans.items():
        recipe = yaqa_recipe(model, texts, types, [site.name for site in sites if site.is_lookup])
        Path(folder, name).with_suffix(".yaml").write_text(yaml.safe_dump(recipe))
    solver = Solver(sites, inputs, len(plans))
    for name, types in plans.items():
        copy = lm.shallow_copy()
        for site in matrices(copy):
            copy.replace(site, solver.solve(site.name, types[site.name]))
        write_numbers(copy, check_gguf(copy), Path(folder, name))
        clock.show(name)
        Path(folder, f"{name}.notes").write_text(json.dumps(clock.notes()))


def yaqa_recipe(model: str, texts: str, types: Types, lookups: Sequence[str]) -> dict[str, object]:
    """The recipe that solves for these types by `yaqa`; 8 bits and word embeddings are rounded to the nearest values.

    Args:
        model: the folder of the model.
        texts: the file of the texts.
        types: the type of each matrix.
        lookups: the word embeddings.
    """
    plan = {
        name: {"rtn" if kind == NEARLY_EXACT or name in lookups else "yaqa": {"grid": kind}}
        for name, kind in types.items()
    }
    data = {"data": texts, "max_length": TOKENS, "batch_size": 1, "stream": True}
    return {"model": model, **data, "steps": [{"compress": {"method": "yaqa", "plan": plan}}]}


class Clock:
    """Shows how long each part of the program took."""

    def __init__(self) -> None:
        self._start, self._last = time.perf_counter(), time.process_time()

    def show(self, part: str) -> None:
        """Show the CPU seconds since the last call."""
        now = time.process_time()
        print(f"{part}: {now - self._last:.0f} CPU s", flush=True)
        self._last = now

    def notes(self) -> dict[str, float]:
        """The seconds and the largest memory so far."""
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"seconds": time.perf_counter() - self._start, "cpu_seconds": time.process_time(), "peak": peak}


def corpus(lm: LanguageModel, texts: str, rows: int) -> Calibration:
    """The first texts."""
    return Calibration(batches(lm, read(texts, "train").first(rows), batch_size=1, max_length=TOKENS))


class Solver:
    """Solves matrices, each once for a type.

    Args:
        sites: the matrices.
        inputs: the moment of the inputs of each, by name.
        files: the number of files.
    """

    def __init__(self, sites: Sequence[Site], inputs: Mapping[str, LayerStats], files: int) -> None:
        self._sites, self._inputs = {site.name: site for site in sites}, inputs
        self._solved: dict[tuple[str, str], Format] = {}
        for C in {id(stats[InputCovariance]): stats[InputCovariance] for stats in inputs.values()}.values():
            # So its factor is kept for all of them.
            C.readers *= files

    def solve(self, name: str, kind: str) -> Format:
        """A matrix in blocks of a type; a word embedding by tokens."""
        if (name, kind) not in self._solved:
            self._solved[name, kind] = self._solve(self._sites[name], kind)
        return self._solved[name, kind]

    def _solve(self, site: Site, kind: str) -> Format:
        if site.is_lookup:
            return construct(Rtn, {"grid": kind}, "types").compress(site.weight().T.contiguous(), LayerStats())
        method = construct(Rtn if kind == NEARLY_EXACT else Gptq, {"grid": kind}, "types")
        return method.compress(site.weight(), self._inputs[site.name])


if __name__ == "__main__":
    main(*sys.argv[1:])
