"""Token classification, question answering and multiple choice: a MiniLM fine-tuned on each, compressed.

The encoder of minilm-sst2 gets a new head and is fine-tuned, once for each set of data (`benchmarks.heads_data` and
`benchmarks.fact_tasks`). Then its blocks are compressed by each method to a half and a quarter of their bytes, with
three draws of the calibration rows, and evaluated on the development split beside the fine-tuned model. Each finished
cell is one line of benchmarks/results/heads.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from benchmarks.common import Cells, clone, models_folder
from benchmarks.fact_tasks import TAGS
from benchmarks.heads_data import ADDRESS_TAGS, missing_data, write_all
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.sources import read
from laconic.compress import Compress, Narrow, Step
from laconic.evaluate.eval_task import EvalTask, TaskResult
from laconic.evaluate.fidelity import Reference, compare_to_reference
from laconic.evaluate.metrics import Metric, Scores, interval
from laconic.evaluate.paired import difference
from laconic.evaluate.references import ReferenceCache
from laconic.evaluate.tasks import find_task
from laconic.methods import Gptq, KfacSvd
from laconic.model import LanguageModel, load
from laconic.progress import silent
from laconic.recipe.sampling import Sampling
from laconic.recover import Finetune

CELLS = Cells("heads", ("kind", "way"))
ENCODER, DENSE = "minilm-sst2", "fine-tuned"
SEED, SEEDS = 0, (0, 1, 2)
"""The seed of the training, and those of the calibration rows."""
CALIBRATION_ROWS, MAX_LENGTH, HELD_OUT = 128, 96, 100
DEV_ROWS = 300


@dataclass(frozen=True)
class Kind:
    """A kind of head, with its data.

    Args:
        auto_class: loads the encoder with a new head.
        task: prefix of its evaluation task.
        rows: training rows.
        epochs: passes over them.
        config: values of its configuration.
    """

    auto_class: Any
    task: str
    rows: int
    epochs: float
    config: dict[str, Any]


def _names(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}


TWO = _names("LABEL_0", "LABEL_1")
KINDS = {
    "addresses": Kind(AutoModelForTokenClassification, "token-classification", 1000, 4, _names(*ADDRESS_TAGS)),
    "entities": Kind(AutoModelForTokenClassification, "token-classification", 1800, 2, _names(*TAGS)),
    "questions": Kind(AutoModelForQuestionAnswering, "question-answering", 1500, 2, TWO),
    "goals": Kind(AutoModelForMultipleChoice, "multiple-choice", 600, 2, TWO),
    "choices": Kind(AutoModelForMultipleChoice, "multiple-choice", 900, 2, TWO),
}
METHODS = {
    "kfac-svd + spectrum, a half": Compress(method=KfacSvd(), keep=0.5, allocate="spectrum"),
    "gptq, 8 bits": Compress(method=Gptq(bits=8, group_size=64)),
    "kfac-svd + spectrum, a quarter": Compress(method=KfacSvd(), keep=0.25, allocate="spectrum"),
    "gptq, 4 bits": Compress(method=Gptq(bits=4, group_size=64)),
}
WAYS: dict[str, Step] = {
    **METHODS,
    "narrow, a half": Narrow(heads=0.5, channels=0.5),
    "narrow, a quarter": Narrow(heads=0.25, channels=0.25),
}
"""The steps, which keep about a half or a quarter of the bytes of 16 bits."""


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="some of the sets of data")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="some of the ways")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(gettempdir()) / "laconic-heads",
        help="folder of the data and trained models",
    )
    options = parser.parse_args(argv)
    if (reason := missing_data()) is not None:
        print(f"Nothing was measured: {reason}.")
        return
    write_all(options.folder)
    for name in filter(lambda name: (options.folder / name).is_dir(), options.kinds):
        missing = [way for _, way in CELLS.missing((name, way) for way in (DENSE, *options.ways))]
        if not missing:
            continue
        if not (options.folder / "models" / name / "config.json").is_file():
            train(name, options.folder)
        bench = Bench.of(name, options.folder)
        for way in missing:
            CELLS.add((name, way), bench.measure_original() if way == DENSE else bench.measure(way))
    print(f"{CELLS}; `python -m benchmarks heads_tables` makes the tables")


def train(name: str, folder: Path) -> None:
    """Fine-tune the encoder with a new head, and save it in 16 bits."""
    kind, source = KINDS[name], models_folder() / ENCODER
    torch.manual_seed(SEED)
    model = kind.auto_class.from_pretrained(
        source, dtype=torch.float32, ignore_mismatched_sizes=True, problem_type=None, **kind.config
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    lm = replace(LanguageModel.of(model), tokenizer=tokenizer, source=name)
    data = calibration(lm, read(str(folder / name), "train"), samples=1, seed=SEED)
    settings: dict[str, Any] = {"rows": kind.rows, "epochs": kind.epochs, "held_out": HELD_OUT}
    Finetune(**settings, learning_rate=2e-4, evaluations=2, dropout=False).apply(lm, data)
    lm.model.half().save_pretrained(folder / "models" / name)
    tokenizer.save_pretrained(folder / "models" / name)


def calibration(lm: LanguageModel, corpus: Corpus, samples: int, seed: int) -> Calibration:
    """Training rows drawn with `seed`."""
    return Sampling(samples=samples, seed=seed, max_length=MAX_LENGTH).of(lm, corpus, silent)


@dataclass
class Bench:
    """A fine-tuned model with its data, and with what all ways of compression share.

    Args:
        lm: the model.
        task: its evaluation task.
        train: the training rows.
        dev: the first rows of the development split.
        reference: the predictions of the model on `dev`.
        stats: the statistics of the matrices by the seed of the calibration rows, with the solutions of each method.
    """

    lm: LanguageModel
    task: EvalTask
    train: Corpus
    dev: Corpus
    reference: Reference
    stats: dict[int, dict[str, LayerStats]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, folder: Path) -> "Bench":
        """The model and data of one key of `KINDS`."""
        lm, source = load(str(folder / "models" / name)), str(folder / name)
        task = find_task(f"{KINDS[name].task}:{source}")
        assert isinstance(task, EvalTask)
        dev = task.load_corpus(DEV_ROWS)
        return cls(lm, task, read(source, "train"), dev, ReferenceCache().get(lm, task.texts(dev), SEED))

    @cached_property
    def scores(self) -> TaskResult:
        """The scores of the fine-tuned model."""
        return self.task.evaluate(self.lm, self.dev, silent)

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics of all rows; those of one type of entity are left out."""
        return {name: metric for name, metric in self.scores.metrics.items() if "/" not in name}

    def measure_original(self) -> dict[str, Any]:
        """The cell of the fine-tuned model."""
        table = self.scores.table
        return {
            "metrics": {name: asdict(interval(metric, table, SEED)) for name, metric in self.metrics.items()},
            "rows": len(table),
            "train_rows": len(self.train.examples),
        }

    def measure(self, way: str) -> dict[str, Any]:
        """The cell of one way: means over the seeds, and the test of the mean change."""
        tables: list[Scores] = []
        kls: list[float] = []
        sizes: list[tuple[int, int]] = []
        for seed in SEEDS:
            small = clone(self.lm)
            data = calibration(small, self.train, CALIBRATION_ROWS, seed)
            if way in METHODS:
                outcome = METHODS[way].apply_with(small, self._stats_of(seed, data), data)
            else:
                outcome = WAYS[way].apply(small, data)
            tables.append(self.task.evaluate(small, self.dev, silent).table)
            kls.append(compare_to_reference(small, self.reference).kl)
            sizes.append((outcome.nbytes, outcome.dense_nbytes))
        ours, theirs = np.hstack(tables), np.hstack([self.scores.table] * len(SEEDS))
        seeded = {name: [metric(table) for table in tables] for name, metric in self.metrics.items()}
        changes = {name: difference(MeanOfSeeds(metric), ours, theirs, SEED) for name, metric in self.metrics.items()}
        return {
            "metrics": {name: {"value": mean(values), "seeds": values} for name, values in seeded.items()},
            "changes": {name: change.to_json() for name, change in changes.items()},
            "kl": kls,
            "bytes": mean(nbytes for nbytes, _ in sizes),
            "dense_bytes": mean(nbytes for _, nbytes in sizes),
        }

    def _stats_of(self, seed: int, data: Calibration) -> dict[str, LayerStats]:
        if seed not in self.stats:
            needs = frozenset().union(*(step.needs for step in METHODS.values()))
            self.stats[seed] = collect_stats(self.lm, data, needs, self.lm.sites())
        return self.stats[seed]


@dataclass(frozen=True)
class MeanOfSeeds:
    """The mean over the seeds of a metric, for a table that has the columns of all seeds side by side."""

    metric: Metric

    def __call__(self, table: Scores) -> float:
        return mean(self.metric(part) for part in np.hsplit(table, len(SEEDS)))
