"""What the benchmarks share: models and data by name, predictions on a development set, results as JSON."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from laconic.calibrate import Calibration
from laconic.calibrate.corpus import batches, read, sample
from laconic.model import Batch, LanguageModel, Predictions, divergence, predict

RESULTS = Path(__file__).parent / "results"


def models_folder() -> Path:
    """The folder of the models that the tables of docs/ were measured on, beside LACONIC_DATA."""
    return Path(os.environ.get("LACONIC_DATA", "../shared/data")).resolve().parent / "models"


def calibration(lm: LanguageModel, source: str, rows: int, seed: int) -> Calibration:
    """`rows` training rows of `source`, drawn with `seed`."""
    drawn = sample(read(source, "train"), rows, seed)
    return Calibration(batches(lm, drawn, batch_size=16, max_length=128), seed=seed)


def development(lm: LanguageModel, source: str, rows: int | None = None) -> list[Batch]:
    """The development rows with their labels, longest first, so that batches carry little padding."""
    corpus = read(source, "dev").first(rows)
    examples = sorted(corpus.examples, key=lambda example: -len(example.text) - len(example.pair or ""))
    return batches(lm, replace(corpus, examples=tuple(examples)), batch_size=32, max_length=128, labelled=True)


@torch.inference_mode()
def predictions(lm: LanguageModel, data: list[Batch]) -> Predictions:
    """What `lm` says about every row of `data`."""
    parts = [predict(lm, batch)[0] for batch in data]
    labels = [part.labels for part in parts if part.labels is not None]
    values = torch.cat([part.values for part in parts])
    rows = torch.arange(len(values))
    return Predictions(values, rows, torch.cat(labels) if labels else None, parts[0].distribution)


def kl(reference: Predictions, other: Predictions) -> float:
    """Mean KL(reference ‖ other) in nats per prediction."""
    return divergence(reference, other).mean().item()


def clone(lm: LanguageModel) -> LanguageModel:
    """A copy whose model can be changed."""
    return replace(lm, model=copy.deepcopy(lm.model))


def write_json(name: str, result: object) -> Path:
    """Keep `result` under benchmarks/results/."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
