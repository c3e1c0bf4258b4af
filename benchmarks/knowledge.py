"""LAMA and BLiMP scores of a small masked language model before and after compression.

The model is that of `masked_lm`, calibrated on 128 of its training rows. It is evaluated on the first facts of each
relation of LAMA and the first pairs of each paradigm of BLiMP. Each finished cell is one line of
benchmarks/results/knowledge.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
from collections.abc import Sequence

from rich.progress import track

from benchmarks.common import Cells, clone
from benchmarks.masked_lm import masked_lm, passages
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import Calibration
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import sample
from laconic.compress import Compress
from laconic.evaluate import evaluate
from laconic.methods import Gptq, KfacSvd, Magnitude, Rtn, Svd, Wanda
from laconic.model import LanguageModel, load

CELLS = Cells("knowledge", ("way",))
BEGIN = "<!-- made by `python -m benchmarks knowledge_tables` -->"
CALIBRATION_ROWS = 128
SEED = 0
LIMITS = {"lama": 2000, "blimp": 335}
"""Facts of LAMA and pairs of BLiMP."""
DENSE = "dense"
VARIANTS: dict[str, Compress | None] = {
    DENSE: None,
    "svd, half of the bytes": Compress(method=Svd(), keep=0.5),
    "kfac-svd, half of the bytes": Compress(method=KfacSvd(), keep=0.5),
    "rtn, 4 bits": Compress(method=Rtn(bits=4, group_size=64)),
    "gptq, 4 bits": Compress(method=Gptq(bits=4, group_size=64)),
    "magnitude, 50 % zeros": Compress(method=Magnitude(sparsity=0.5)),
    "wanda, 50 % zeros": Compress(method=Wanda(sparsity=0.5)),
}
SHOWN = (("lama", "p@1/trex"), ("lama", "p@10/trex"), ("lama", "mrr/trex"), ("lama", "mrr"), ("blimp", "accuracy"))


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    missing = CELLS.missing((variant,) for variant in VARIANTS)
    if not missing:
        return
    lm = load(str(masked_lm()))
    rows = sample(passages(), CALIBRATION_ROWS, SEED)
    data = Calibration(batches(lm, rows, batch_size=16, max_length=128), seed=SEED)
    for (variant,) in track(missing, "knowledge"):
        CELLS.add((variant,), cell(lm, VARIANTS[variant], data))


def cell(lm: LanguageModel, step: Compress | None, data: Calibration) -> dict:
    """Scores with their intervals, and the share of the bytes of the blocks' matrices."""
    small, kept = clone(lm), 1.0
    if step is not None:
        outcome = step.apply(small, data)
        kept = outcome.nbytes / outcome.dense_nbytes
    results: dict[str, dict] = {}
    for task, limit in LIMITS.items():
        results |= evaluate(small, [task], limit=limit, cost=False).to_json()["results"]
    return {"kept": kept, "results": results}


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/facts-and-grammar.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    lines = [
        f"| | of the bytes | {' | '.join(f'{task} {metric}' for task, metric in SHOWN)} |",
        "|---|---:|" + "---|" * len(SHOWN),
    ]
    for variant in VARIANTS:
        for here in CELLS.where(way=variant):
            figures = " | ".join(_figure(here["results"][task][metric]) for task, metric in SHOWN)
            lines.append(f"| {variant} | {here['kept']:.0%} | {figures} |")
    replace_between(ROOT / "docs/facts-and-grammar.md", "\n".join([*lines, ""]), BEGIN)


def _figure(found: dict) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} – {found['high']:.3f})"
