"""Made-up records of a study, in the shape of real ones: each method loses quality in its own way."""

import random
from collections.abc import Iterator, Mapping
from itertools import product
from math import exp
from typing import Any

Record = dict[str, Any]

SIZES = {"minilm-sst2": 90_900_000, "bert-base-sst2": 437_900_000}
STRENGTH = {"svd": 1.9, "drone": 1.0, "kfac-svd": 0.5, "magnitude": 1.2, "wanda": 0.7}
FAMILY = {"magnitude": "pruning", "wanda": "pruning"}
TASK = "glue/sst2"
ROWS = 872
NOTHING: Mapping[str, Any] = {}


def study(
    models: tuple[str, ...] = ("minilm-sst2", "bert-base-sst2"),
    methods: tuple[str, ...] = ("svd", "drone", "kfac-svd", "magnitude", "wanda"),
    keeps: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3),
    seeds: tuple[int, ...] = (0, 1, 2),
    targets: tuple[str | None, ...] = (None,),
    timed: bool = True,
    workers: int = 1,
) -> list[Record]:
    """The cells of a grid, and the original of each model."""
    made = [baseline(model, len(targets) > 1, timed) for model in models]
    for model, method, keep, target, seed in product(models, methods, keeps, targets, seeds):
        axes = {"model": model, "method": method, "keep": keep, "seed": seed}
        if len(targets) > 1:
            axes["targets"] = target
        made.append(cell(axes, timed=timed))
    for record in made:
        record["workers"] = workers
    return made


def baseline(model: str, targeted: bool = False, timed: bool = True) -> Record:
    """The record of a model as it was."""
    axes = {"model": model, "method": "original", "keep": None, "seed": None, **({"targets": None} if targeted else {})}
    record = cell(axes, timed=timed, loss=0.0)
    for section in ("fidelity", "difference", "least_p", "detectable"):
        del record["evaluation"][section]
    return {**record, "baseline": True, "family": "original", "output": None, "sites": {}, "statistics": None,
            "bytes": record["dense_bytes"], "file_bytes": SIZES[model]}  # fmt: skip


def failed(axes: Mapping[str, Any], sentence: str) -> Record:
    """The record of a cell that came to nothing."""
    return {"version": 1, "key": key_of(axes), "state": "failed", "baseline": False, "axes": dict(axes),
            "family": FAMILY.get(axes["method"], "low rank"), "recipe": _recipe(axes),
            "error": {"kind": "UserError", "sentence": sentence}, "seconds": {"total": 1.0},
            "machine": MACHINE, "versions": VERSIONS, "workers": 1, "finished": FINISHED}  # fmt: skip


def cell(axes: Mapping[str, Any], timed: bool = True, loss: float | None = None) -> Record:
    """The record of a model that was compressed so; `loss` in points of accuracy."""
    chance = random.Random(str(sorted(axes.items(), key=str)))
    share = 1.0 if axes.get("targets") in (None, "all") else 0.5
    keep = axes.get("keep") or 1.0
    if loss is None:
        loss = share * STRENGTH[axes["method"]] * 0.25 * (1 - keep) ** 2.2 + chance.gauss(0, 0.003)
    accuracy = round((0.925 if "bert" in axes["model"] else 0.902) * ROWS - loss * ROWS) / ROWS
    dense = int(0.6 * share * SIZES[axes["model"]])
    record: Record = {
        "version": 1, "key": key_of(axes), "state": "done", "baseline": False, "axes": dict(axes),
        "family": FAMILY.get(axes["method"], "low rank"), "recipe": _recipe(axes),
        "bytes": int(dense * keep), "dense_bytes": dense, "file_bytes": SIZES[axes["model"]] - int(dense * (1 - keep)),
        "sites": dict(_sites(axes, keep)), "output": f"models/{key_of(axes)}",
        "evaluation": _evaluation(accuracy, loss, keep, axes, chance),
        "seconds": {"total": 31.5 + chance.random(), "compress": 12.0, "evaluate": 19.0},
        "statistics": "kept", "machine": MACHINE, "versions": VERSIONS, "workers": 1, "finished": FINISHED,
    }  # fmt: skip
    if not timed:
        del record["evaluation"]["cost"]
    return record


def key_of(axes: Mapping[str, Any]) -> str:
    return f"{random.Random(str(sorted(axes.items(), key=str))).getrandbits(64):016x}"


MACHINE = {"device": "cpu", "threads": 2, "instructions": "AVX512 avx512_vnni"}
VERSIONS = {"python": "3.12.3", "torch": "2.13.0", "transformers": "5.23.0"}
FINISHED = "2026-03-01T12:00:00+00:00"


def _recipe(axes: Mapping[str, Any]) -> dict[str, Any]:
    step = {"compress": {"method": axes["method"], "keep": axes.get("keep")}}
    return {"model": axes["model"], "data": TASK, "samples": 256, "seed": axes.get("seed"), "max_length": 128,
            "steps": [step]}  # fmt: skip


def _sites(axes: Mapping[str, Any], keep: float) -> Iterator[tuple[str, Any]]:
    for layer, site in product(range(6), ("attention.self.query", "attention.self.key", "intermediate.dense")):
        rank = int(192 * keep) - (layer if axes["method"] == "kfac-svd" else 0)
        pruned = axes["method"] in FAMILY
        yield (
            f"encoder.layer.{layer}.{site}",
            {axes["method"]: {"sparsity": round(1 - keep, 2)} if pruned else {"rank": rank}},
        )


def _evaluation(
    accuracy: float, loss: float, keep: float, axes: Mapping[str, Any], chance: random.Random
) -> dict[str, Any]:
    kl = max(loss, 0.0005) * 3.2
    large = SIZES[axes["model"]] / SIZES["minilm-sst2"]
    speeds = [_speed(batch, large * (0.2 + 0.8 * keep) * chance.uniform(0.97, 1.03)) for batch in (1, 8)]
    settings = {"source": TASK, "split": "dev", "rows": ROWS, "seed": 0, "context": 128, "tokenizer": "bert",
                "calibration_rows": {TASK: 0}, "versions": VERSIONS}  # fmt: skip
    return {
        "results": {TASK: {"accuracy": _interval(accuracy, 0.02)}},
        "settings": {TASK: settings},
        "cost": {"parameters": 22_000_000, "bytes": 90_000_000, "memory_bytes": 91_000_000, "dtype": "float32",
                 "parts": {"attention": 1, "ffn": 2}, "latency": speeds, "runtime": {"name": "eager"},
                 "machine": MACHINE},
        "fidelity": {"kl": kl, "kl_low": kl * 0.8, "kl_high": kl * 1.25, "top1_agreement": 1 - loss, "cosine": 0.99,
                     "predictions": ROWS, "rows": ROWS, "source": TASK, "split": "dev", "context": 128,
                     "tokenizer": "bert", "seed": 0},
        "difference": {TASK: {"accuracy": {**_interval(-loss, 0.012), "p": min(1.0, 2 * exp(-150 * abs(loss)))}}},
        "least_p": {TASK: {"accuracy": 2.0 ** (1 - ROWS)}},
        "detectable": {TASK: {"accuracy": 0.017}},
    }  # fmt: skip


def _interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _speed(batch: int, scale: float) -> dict[str, Any]:
    median = 0.004 * scale * batch**0.8
    return {"batch": batch, "length": 128, "median": median, "lower_quartile": 0.97 * median,
            "upper_quartile": 1.04 * median, "runs": 30, "throughput": batch * 128 / median, "macs": 10**9,
            "macs_per_token": 10**7, "peak_bytes": 10**8}  # fmt: skip
