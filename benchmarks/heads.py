"""Token classification, question answering and multiple choice: a MiniLM fine-tuned on each, compressed to a half.

The encoder of minilm-sst2 gets a new head and is fine-tuned on data that `benchmarks.fact_tasks` makes from LAMA, once.
Then its blocks are compressed by each method and evaluated on the development split beside the fine-tuned model: the
metric and its change with 95 % intervals, and the KL divergence. Each finished cell is one line of
benchmarks/results/heads.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from benchmarks.common import Cells, clone, models_folder
from benchmarks.fact_tasks import TAGS, write_data
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate.sources import read
from laconic.compress import Compress, Narrow, Step
from laconic.evaluate.fidelity import ReferenceCache
from laconic.evaluate.run import Evaluation, evaluate
from laconic.methods import Gptq, KfacSvd
from laconic.model import LanguageModel, load
from laconic.progress import silent
from laconic.recipe.sampling import Sampling
from laconic.recover import Finetune

CELLS = Cells("heads", ("kind", "way"))
BEGIN = "<!-- made by `python -m benchmarks heads_tables` -->"
PAGE = ROOT / "docs" / "figures" / "heads.md"
ENCODER, DENSE = "minilm-sst2", "fine-tuned"
SEED, CALIBRATION_ROWS, MAX_LENGTH, HELD_OUT = 0, 128, 96, 100
DEV_ROWS = 500


@dataclass(frozen=True)
class Kind:
    """A kind of head.

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


KINDS = {
    "entities": Kind(AutoModelForTokenClassification, "token-classification", 1800, 2, _names(*TAGS)),
    "questions": Kind(AutoModelForQuestionAnswering, "question-answering", 1500, 2, _names("LABEL_0", "LABEL_1")),
    "choices": Kind(AutoModelForMultipleChoice, "multiple-choice", 900, 2, _names("LABEL_0", "LABEL_1")),
}
WAYS: dict[str, Step] = {
    "kfac-svd + spectrum": Compress(method=KfacSvd(), keep=0.5, allocate="spectrum"),
    "gptq, 8 bits": Compress(method=Gptq(bits=8, group_size=64)),
    "narrow": Narrow(heads=0.5, channels=0.5),
}
"""The steps, each of which keeps about half of the bytes of 16 bits."""


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="some of the heads")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(gettempdir()) / "laconic-heads",
        help="folder of the data and trained models",
    )
    options = parser.parse_args(argv)
    write_data(options.folder)
    for name in options.kinds:
        missing = CELLS.missing((name, way) for way in (DENSE, *WAYS))
        if not missing:
            continue
        if not (options.folder / "models" / name / "config.json").is_file():
            train(name, options.folder)
        lm, references = load(str(options.folder / "models" / name)), ReferenceCache()
        for _, way in missing:
            measure(lm, name, way, options.folder, references)
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
    data = Sampling(samples=1, seed=SEED, max_length=MAX_LENGTH).of(lm, read(str(folder / name), "train"), silent)
    settings: dict[str, Any] = {"rows": kind.rows, "epochs": kind.epochs, "held_out": HELD_OUT}
    Finetune(**settings, learning_rate=2e-4, evaluations=2, dropout=False).apply(lm, data)
    lm.model.half().save_pretrained(folder / "models" / name)
    tokenizer.save_pretrained(folder / "models" / name)


def measure(lm: LanguageModel, name: str, way: str, folder: Path, references: ReferenceCache) -> None:
    """Measure one cell; the scores of the fine-tuned model are read from the cache of scores after the first."""
    task, begun = f"{KINDS[name].task}:{folder / name}", time.perf_counter()
    if way == DENSE:
        CELLS.add((name, way), _cell(evaluate(lm, [task], limit=DEV_ROWS, cost=False, resume=True), task))
        return
    corpus = read(str(folder / name), "train")
    data = Sampling(samples=CALIBRATION_ROWS, seed=SEED, max_length=MAX_LENGTH).of(lm, corpus, silent)
    small = clone(lm)
    outcome = WAYS[way].apply(small, data)
    seconds = time.perf_counter() - begun
    found = evaluate(small, [task], limit=DEV_ROWS, against=lm, cost=False, resume=True, references=references)
    sizes = {"bytes": outcome.nbytes, "dense_bytes": outcome.dense_nbytes, "seconds": seconds}
    CELLS.add((name, way), {**_cell(found, task), **sizes})


def _cell(found: Evaluation, task: str) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "metrics": {metric: asdict(value) for metric, value in found.results[task].items()},
        "rows": found.settings[task]["rows"],
    }
    if found.difference is not None and found.fidelity is not None:
        cell["changes"] = {metric: change.to_json() for metric, change in found.difference[task].items()}
        cell["kl"] = found.fidelity.kl
    return cell


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/heads.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    lines: list[str] = []
    for name, kind in KINDS.items():
        dense = CELLS.where(kind=name, way=DENSE)
        if not dense:
            continue
        metrics = [metric for metric in dense[0]["metrics"] if "/" not in metric]
        main_metric = metrics[0]
        lines += [
            f"**{kind.task}** (`{name}`, {dense[0]['rows']} rows of the development split)",
            "",
            f"| | of the bytes | {' | '.join(metrics)} | change of {main_metric} | p | KL, nats |",
            f"|---|---:|{'---:|' * len(metrics)}---:|---:|---:|",
            f"| {DENSE} | 100 % | {_values(dense[0], metrics)} | | | |",
        ]
        for way in WAYS:
            for cell in CELLS.where(kind=name, way=way):
                change = cell["changes"][main_metric]
                lines.append(
                    f"| {way} | {cell['bytes'] / cell['dense_bytes']:.0%} | {_values(cell, metrics)} | "
                    f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f}) | {change['p']:.3f} | "
                    f"{cell['kl']:.4f} |"
                )
        lines.append("")
    replace_between(PAGE, "\n".join(lines), BEGIN)


def _values(cell: dict[str, Any], metrics: Sequence[str]) -> str:
    return " | ".join(f"{cell['metrics'][metric]['value']:.3f}" for metric in metrics)
