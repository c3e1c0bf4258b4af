"""STS-B judges embedding models by the similarity of two vectors, as sentence-transformers' evaluator does."""

from pathlib import Path

import pytest
import torch

from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.sources import glue_task
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.evaluate import evaluate
from laconic.evaluate.glue import Glue
from laconic.evaluate.similarity import similarity
from laconic.evaluate.tasks import check_tasks
from laconic.model import load, load_empty
from laconic.model.embedding import SIMILARITIES
from laconic.progress import silent
from laconic.store import save
from tests.architectures import WIDTH, compress_everything
from tests.evaluate.models import with_tokenizer
from tests.model.embedding.sentence_transformers_reference import installed_package
from tests.sentences import NORMALIZE, dense, pooling, sentence_folder

STSB = Glue(glue_task("stsb"))
PAIRS = (("it was the best", "the best it was", 5.0), ("of times", "a tale of it", 1.25), ("two cities", "of two", 3.0))
MORE = (*PAIRS, ("an age of wisdom", "an age of foolishness and more", 2.0), ("it", "was", 0.0))
PARTS = {
    "cls": [pooling("cls"), NORMALIZE],
    "dense": [pooling("mean", "max"), dense(2 * WIDTH, 8)],
    "last token": [pooling("lasttoken")],
}


def corpus(pairs: tuple[tuple[str, str, float], ...] = MORE) -> Corpus:
    return Corpus("glue/stsb", "dev", tuple(Example(one, other, score / 5) for one, other, score in pairs))


@pytest.fixture
def glue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STS-B of a few rows, in its own layout."""
    folder = tmp_path / "data" / "glue" / "STS-B"
    folder.mkdir(parents=True)
    lines = ["sentence1\tsentence2\tscore", *("\t".join(map(str, pair)) for pair in MORE)]
    (folder / "dev.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path / "data"))


@pytest.mark.parametrize("by", SIMILARITIES)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.slow
def test_figures_are_those_of_the_library(parts: str, by: str, tmp_path: Path, glue: None) -> None:
    top = {"similarity_fn_name": by, "prompts": {"query": "so: "}, "default_prompt_name": "query"}
    folder = sentence_folder(tmp_path / "model", PARTS[parts], top=top)
    save(compress_everything(load(str(folder)), rank=8), tmp_path / "out")
    found = evaluate(load(str(tmp_path / "out")), ["glue/stsb"], cost=False).to_json()["results"]["glue/stsb"]
    with installed_package() as package:
        from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

        texts = [pair[0] for pair in MORE], [pair[1] for pair in MORE]
        judge = EmbeddingSimilarityEvaluator(*texts, [pair[2] for pair in MORE], write_csv=False)
        wanted = judge(package.SentenceTransformer(str(tmp_path / "out"), device="cpu"))
    assert found["pearson"]["value"] == pytest.approx(wanted[f"pearson_{by}"], abs=1e-4)
    assert found["spearman"]["value"] == pytest.approx(wanted[f"spearman_{by}"], abs=1e-6)


@pytest.mark.parametrize(
    ("by", "wanted"), [("cosine", 11 / (5 * 5**0.5)), ("dot", 11.0), ("euclidean", -(8**0.5)), ("manhattan", -4.0)]
)
def test_a_similarity_is_greater_where_texts_are_nearer(by: str, wanted: float) -> None:
    one, other = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[1.0, 2.0]]).double()
    assert similarity(one, other, by).item() == pytest.approx(wanted)
    assert similarity(one, one, by) > similarity(one, -one, by)


def test_the_table_has_the_rows_in_order_and_the_settings_what_it_depends_on(tmp_path: Path) -> None:
    lm = load(str(sentence_folder(tmp_path / "model", PARTS["cls"])))
    judged = STSB.evaluate(lm, corpus(), silent)
    assert judged.table[:, 0].tolist() == [score / 5 for _, _, score in MORE]
    alone = [STSB.evaluate(lm, corpus((pair,)), silent).table[0, 1] for pair in MORE]
    assert judged.table[:, 1].tolist() == pytest.approx(alone, abs=1e-6)
    assert judged.settings["similarity"] == "cosine" and judged.settings["vectors"] == "cls pooling, unit length"


def test_an_encoder_that_declares_nothing_is_judged_by_its_mean() -> None:
    settings = STSB.evaluate(with_tokenizer("bert-base"), corpus(), silent).settings
    assert settings["vectors"] == "mean pooling, unit length (none is declared: there is no modules.json)"


def test_a_compressed_model_is_compared_with_its_original(
    tmp_path: Path, glue: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sentence_folder(tmp_path / "model", PARTS["dense"])
    save(compress_everything(load(str(folder)), rank=4), tmp_path / "out")
    capsys.readouterr()
    asked = [
        "evaluate",
        str(tmp_path / "out"),
        "--tasks",
        "glue/stsb",
        "--against",
        str(folder),
        "--batch",
        "1",
        "--length",
        "4",
    ]
    assert status(asked) == 0
    said = capsys.readouterr().out
    assert "spearman" in said and "pooling" in said


def test_rows_that_cannot_be_compared_are_one_sentence(tmp_path: Path) -> None:
    lm = load(str(sentence_folder(tmp_path / "model", PARTS["cls"])))
    single = Corpus("glue/stsb", "dev", (Example("it was", label=0.5),))
    with pytest.raises(
        UserError, match="compares two texts in each row, and the 1 rows of 'glue/stsb' have 1 texts with"
    ):
        STSB.evaluate(lm, single, silent)
    with pytest.raises(UserError, match="has no labels"):
        STSB.evaluate(lm, Corpus("glue/stsb", "dev", (Example("it was", "it"),)), silent)
    with pytest.raises(UserError, match=r"Row 1 of 'glue/stsb' has the label 'near'; .* compares two texts, so"):
        STSB.evaluate(lm, Corpus("glue/stsb", "dev", (Example("it was", "it", "near"),)), silent)


def test_which_tasks_judge_vectors_is_known_before_weights_are_loaded(tmp_path: Path, glue: None) -> None:
    outline = load_empty(str(sentence_folder(tmp_path / "model", PARTS["cls"])))
    check_tasks(["glue/stsb"], outline, compared=False)
    with pytest.raises(UserError, match=r"'glue/mrpc' needs a classification or regression model; .* is an embedding"):
        Glue(glue_task("mrpc")).check_model(outline)
