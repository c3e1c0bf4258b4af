"""Helpers of the benchmarks: models and data by name, predictions, result files, and numbers in Markdown tables.

A cell is one measurement, and one line of its benchmark's file. It is written when it is finished, so that an
interrupted run can continue.
"""

import copy
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import floor, log10
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

import torch

from laconic.calibrate import Calibration
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import sample
from laconic.calibrate.sources import read
from laconic.model import Batch, LanguageModel, Predictions, divergence, load, predict

RESULTS = Path(__file__).parent / "results"


def models_folder() -> Path:
    """The folder of the models that the tables of docs/ were measured on, beside LACONIC_DATA."""
    return Path(os.environ.get("LACONIC_DATA", "../shared/data")).resolve().parent / "models"


def load_model(name: str) -> LanguageModel:
    """Load the model of this name from `models_folder`."""
    return load(str(models_folder() / name))


def calibration(lm: LanguageModel, source: str, rows: int, seed: int) -> Calibration:
    """`rows` training rows of `source`, sampled with `seed`."""
    drawn = sample(read(source, "train"), rows, seed)
    return Calibration(batches(lm, drawn, batch_size=16, max_length=128), seed=seed)


def development(lm: LanguageModel, source: str, rows: int | None = None) -> list[Batch]:
    """The development rows with their labels, longest first, so that batches carry little padding."""
    corpus = read(source, "dev").first(rows)
    examples = sorted(corpus.examples, key=lambda example: -len(example.text) - len(example.pair or ""))
    return batches(lm, replace(corpus, examples=tuple(examples)), batch_size=32, max_length=128, labelled=True)


@torch.inference_mode()
def predictions(lm: LanguageModel, data: list[Batch]) -> Predictions:
    """The predictions of `lm` on every row of `data`."""
    parts = [predict(lm, batch)[0] for batch in data]
    labels = [part.labels for part in parts if part.labels is not None]
    values = torch.cat([part.values for part in parts])
    rows = torch.arange(len(values))
    return Predictions(values, rows, torch.cat(labels) if labels else None, parts[0].distribution)


def kl(reference: Predictions, other: Predictions) -> float:
    """Mean KL(reference ‖ other) in nats per prediction."""
    return divergence(reference, other).mean().item()


def clone(lm: LanguageModel) -> LanguageModel:
    """A copy of `lm` that can be changed."""
    return replace(lm, model=copy.deepcopy(lm.model))


def write_json(name: str, result: object) -> Path:
    """Write `result` to benchmarks/results/."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


Key = TypeVar("Key", bound=tuple)


@dataclass(frozen=True)
class Cells:
    """The cells of one benchmark.

    Args:
        name: the name of its file under benchmarks/results/, without its ending.
        key_names: fields that identify a cell.
    """

    name: str
    key_names: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file of the cells."""
        return RESULTS / f"{self.name}.jsonl"

    def __iter__(self) -> Iterator[dict]:
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                yield json.loads(line)

    def __str__(self) -> str:
        return f"{sum(1 for _ in self)} cells in {self.path}"

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """The keys that have no line yet, in order."""
        done = {tuple(cell[name] for name in self.key_names) for cell in self}
        return [key for key in keys if key not in done]

    def remove(self, keys: Iterable[tuple]) -> None:
        """Remove the lines of these keys, so that they are measured again."""
        again = set(keys)
        kept = [cell for cell in self if tuple(cell[name] for name in self.key_names) not in again]
        self.path.write_text("".join(json.dumps(cell) + "\n" for cell in kept))

    def where(self, **named: Any) -> list[dict]:
        """The cells that have these values."""
        return [cell for cell in self if all(cell[name] == value for name, value in named.items())]

    def add(self, key: tuple, cell: dict) -> None:
        """Write a finished cell."""
        RESULTS.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({**cell, **dict(zip(self.key_names, key, strict=True))}) + "\n")


def quality(here: Sequence[dict], bold: bool = False, digits: int = 4) -> str:
    """KL with its spread over the seeds / metric; empty if nothing was measured."""
    if not here:
        return ""
    kls = [cell["kl"] for cell in here]
    places = places_of(mean(kls), digits)
    around = f" ± {stdev(kls):.{places}f}" if len(kls) > 1 else ""
    return in_bold(f"{mean(kls):.{places}f}{around} / {mean(cell['metric'] for cell in here):.3f}", bold)


def short_quality(here: Sequence[dict], bold: bool = False) -> str:
    """KL / metric, means over the seeds."""
    kl = mean_of(here, "kl")
    return in_bold(f"{kl:.{places_of(kl)}f} / {mean_of(here, 'metric'):.3f}", bold)


def places_of(value: float, least: int = 4) -> int:
    """The number of decimals: `least`, or up to six until two significant digits are shown."""
    return max(least, min(1 - floor(log10(max(abs(value), 1e-6))), 6))


def in_bold(text: str, bold: bool) -> str:
    """`text` as Markdown."""
    return f"**{text}**" if bold else text


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and spread over the seeds."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (one seed)"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def mean_of(here: Sequence[dict], what: str) -> float:
    """The mean of one value; infinite if nothing was measured."""
    return mean(cell[what] for cell in here) if here else float("inf")
