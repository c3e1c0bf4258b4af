"""The figures that are known of real models come out again."""

import json
from pathlib import Path

import pytest

from laconic.calibrate.corpus import Corpus, Example
from laconic.evaluate import evaluate
from laconic.evaluate.perplexity import METRICS, Perplexity
from laconic.model import load
from laconic.progress import silent

ROWS = 200


@pytest.fixture(autouse=True)
def data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACONIC_DATA", str(shared_data))


@pytest.mark.parametrize(
    ("model", "task", "expected"),
    [
        # On all 872 and 1,500 rows: accuracy 0.882, Pearson 0.866, Spearman 0.864.
        ("minilm-sst2", "glue/sst2", {"accuracy": 0.88}),
        ("minilm-stsb", "glue/stsb", {"pearson": 0.917, "spearman": 0.914}),
        ("bart-g2p-us", "seq2seq:g2p", {"exact_match": 0.67, "token_accuracy": 0.9665}),
    ],
)
def test_quality_on_the_first_rows(shared_models: Path, model: str, task: str, expected: dict[str, float]):
    found = evaluate(load(str(shared_models / model)), [task], limit=ROWS, cost=False).results[task]
    assert {metric: figure.value for metric, figure in found.items()} == pytest.approx(expected, abs=0.006)


def test_the_same_classifier_with_its_classes_in_another_order(shared_models: Path, tmp_path: Path):
    lm = load(str(shared_models / "minilm-sst2"))
    plain = evaluate(lm, ["glue/sst2"], limit=ROWS, cost=False).results
    for name in ("classifier.weight", "classifier.bias"):
        parameter = lm.model.get_parameter(name)
        parameter.data = parameter.data.flip(0)
    lm.model.config.id2label = {0: "POSITIVE", 1: "NEGATIVE"}
    assert evaluate(lm, ["glue/sst2"], limit=ROWS, cost=False).results == plain


def test_knowledge_and_structure_of_a_small_causal_model(shared_models: Path):
    lm = load(str(shared_models / "mico-tinyllama-1m"))
    found = evaluate(lm, ["lama/squad", "blimp/island_effects"], limit=305, cost=False)
    # Of the 305 answers 32 are one of its 4,096 tokens; the stories that it was trained on have few questions.
    assert found.settings["lama/squad"]["left_out"] == {"answer not one token": 273}
    assert found.results["lama/squad"]["p@10"].value == pytest.approx(0.4375)
    assert found.results["blimp/island_effects"]["accuracy"].value == pytest.approx(0.4537, abs=0.01)


@pytest.mark.parametrize(
    ("model", "context", "expected"), [("stories260K", 512, 4.870), ("mico-tinyllama-1m", 256, 8.117)]
)
@pytest.mark.slow
def test_perplexity_on_a_hundred_stories(
    shared_data: Path, shared_models: Path, model: str, context: int, expected: float
):
    lm = load(str(shared_models / model))
    assert lm.tokenizer is not None
    stories = json.loads((shared_data / "tinystories" / "tinystories_1000.json").read_text())[::10]
    examples: list[Example] = []
    for story in stories:
        # The published figure cuts every story at the context, the start token included.
        ends = lm.tokenizer(story, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        examples.append(Example(story[: ends[: context - 1][-1][1]]))
    table = Perplexity("stories").evaluate(lm, Corpus("stories", "dev", tuple(examples)), silent).table
    assert METRICS["perplexity"](table) == pytest.approx(expected, abs=0.005)
