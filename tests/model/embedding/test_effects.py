"""The modules that a folder declares after its model count in predictions, sizes, hashes and saved models."""

import json
from pathlib import Path

import pytest
import torch

from laconic.calibrate import Calibration, GradCovariance, collect_stats
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, Example
from laconic.compress.solver_cache import key_of
from laconic.errors import UserError
from laconic.evaluate import Reference, compare_to_reference, evaluate
from laconic.evaluate.cost import measure_cost, stored_bytes
from laconic.evaluate.score_cache import fingerprint
from laconic.evaluate.similarity import neighbour_agreement
from laconic.model import LanguageModel, ModelTask, divergence, load, load_empty, predict
from laconic.model.embedding_modules import POOLING_MASK
from laconic.recover import Student
from laconic.report.inspection.parts import measure_parts
from laconic.store import file_bytes, save
from laconic.store import skeleton as compressed_skeleton
from tests.architectures import BY_NAME, WIDTH, compress_everything, outputs
from tests.model.embedding.sentence_transformers_reference import TEXTS, encoded, predicted
from tests.sentences import NORMALIZE, dense, pooling, sentence_folder

CORPUS = Corpus("memory", "dev", tuple(map(Example, TEXTS)))


@pytest.fixture(scope="module")
def cls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cls") / "model"
    top = {"prompts": {"query": "so: "}, "similarity_fn_name": "cosine"}
    return sentence_folder(folder, [pooling("cls"), dense(WIDTH, 8), NORMALIZE], top=top)


def test_fidelity_is_between_the_vectors_that_are_declared(cls: Path, tmp_path: Path) -> None:
    original, lm = load(str(cls)), compress_everything(load(str(cls)), rank=8)
    save(lm, tmp_path / "out")
    found = compare_to_reference(load(str(tmp_path / "out")), Reference(original, CORPUS))
    one, other = encoded(cls), encoded(tmp_path / "out")
    assert found.kl == pytest.approx(0.5 * (one - other).square().sum(-1).mean().item(), rel=1e-4)
    assert found.cosine == pytest.approx(torch.cosine_similarity(one, other).mean().item(), rel=1e-5)
    assert found.kl == pytest.approx(1 - found.cosine, rel=1e-3)
    assert found.top1_agreement == neighbour_agreement(one, other)
    assert found.vectors == "cls pooling, dense 32 → 8 Tanh, unit length"


def test_what_is_declared_nowhere_is_said(cls: Path, tmp_path: Path) -> None:
    save(load(str(cls)), tmp_path / "out")
    (tmp_path / "out" / "modules.json").unlink()
    plain = load(str(tmp_path / "out"))
    with pytest.raises(UserError, match="their predictions have the shapes"):
        compare_to_reference(plain, Reference(load(str(cls)), CORPUS))
    said = evaluate(plain, ["fidelity:builtin:pydoc"], limit=2, cost=False, against=plain).to_json()["fidelity"]
    assert said["vectors"] == "mean pooling, unit length (none is declared: there is no modules.json)"
    assert measure_parts(plain).vectors == said["vectors"]


def test_models_that_pool_otherwise_are_compared_and_both_named(tmp_path: Path) -> None:
    one = sentence_folder(tmp_path / "one", [pooling("cls"), NORMALIZE])
    other = sentence_folder(tmp_path / "other", [pooling("mean"), NORMALIZE])
    found = compare_to_reference(load(str(one)), Reference(load(str(other)), CORPUS))
    assert found.kl > 0.01 and found.vectors == "cls pooling, unit length; of the original: mean pooling, unit length"


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_the_nearest_is_found_by_the_similarity_that_is_declared(similarity: str, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", [pooling("mean")], top={"similarity_fn_name": similarity})
    original, lm = load(str(folder)), compress_everything(load(str(folder)), rank=4)
    one, other = predicted(original).double(), predicted(lm).double()

    def nearest(vectors: torch.Tensor) -> list[int]:
        score = {
            "cosine": lambda a, b: torch.cosine_similarity(a, b, dim=0),
            "dot": lambda a, b: a @ b,
            "euclidean": lambda a, b: -(a - b).norm(),
            "manhattan": lambda a, b: -(a - b).abs().sum(),
        }[similarity]
        rows = range(len(vectors))
        return [max((n for n in rows if n != at), key=lambda n: score(vectors[at], vectors[n])) for at in rows]

    same = [a == b for a, b in zip(nearest(one), nearest(other), strict=True)]
    assert compare_to_reference(lm, Reference(original, CORPUS)).top1_agreement == pytest.approx(sum(same) / len(same))


def test_fisher_information_is_of_the_vector(cls: Path) -> None:
    lm = load(str(cls))
    data = Calibration(batches(lm, CORPUS, batch_size=8), "enumerated", 0)
    site = lm.sites(("encoder.layer.1.output.dense",))[0]
    found = collect_stats(lm, data, frozenset({GradCovariance}), [site])[site.name][GradCovariance].matrix
    given: list[torch.Tensor] = []
    hook = site.module.register_forward_hook(lambda _, __, output: given.append(output))
    expected = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for text in TEXTS:
        [batch] = batches(lm, Corpus("one", "dev", (Example(text),)))
        vectors = predict(lm, batch)[0].values
        for number in range(vectors.shape[1]):
            # A CLS vector depends on the first token of the last block alone.
            gradient = torch.autograd.grad(vectors[0, number], given[-1], retain_graph=True)[0][0].double()
            assert not gradient[1:].any()
            expected += torch.outer(gradient[0], gradient[0])
    hook.remove()
    torch.testing.assert_close(found.double(), expected / len(TEXTS), rtol=1e-3, atol=1e-6)


def test_a_prompt_stands_before_every_text(tmp_path: Path) -> None:
    top = {"prompts": {"query": "so: ", "other": "no: "}, "default_prompt_name": "query"}
    pooled = load(str(sentence_folder(tmp_path / "pooled", [pooling("mean")], top=top)))
    parts = [pooling("mean", include_prompt=False)]
    apart = load(str(sentence_folder(tmp_path / "apart", parts, top=top)))
    [batch], [masked] = batches(pooled, CORPUS), batches(apart, CORPUS)
    assert POOLING_MASK not in batch and torch.equal(batch["input_ids"], masked["input_ids"])
    read = pooled.tokenizer("so: it was the best of times")["input_ids"]  # type: ignore[misc]
    assert batch["input_ids"][0, : len(read)].tolist() == read
    # The start token and the prompt.
    assert torch.equal(masked[POOLING_MASK].argmax(1), torch.full((len(TEXTS),), 5))
    assert pooled.embedding_pipeline.describe_prompts() == "query, other; 'so: ' stands before every text"


def test_prompts_that_stand_nowhere_are_said(cls: Path) -> None:
    assert measure_parts(load(str(cls))).prompts == "query; none stands before a text"


def test_texts_are_cut_where_the_folder_says(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", [pooling("mean")], settings={"max_seq_length": 9})
    assert max(batch["input_ids"].shape[1] for batch in batches(load(str(folder)), CORPUS)) == 9
    assert max(batch["input_ids"].shape[1] for batch in batches(load(str(folder)), CORPUS, max_length=6)) == 6


def test_sizes_count_what_lies_behind_the_transformer(cls: Path, tmp_path: Path) -> None:
    lm = load(str(cls))
    parameters = sum(one.numel() for one in lm.model.parameters())
    assert lm.size() == (parameters + 8 * WIDTH + 8, 4 * (parameters + 8 * WIDTH + 8))
    save(lm, tmp_path / "out")
    assert stored_bytes(lm) == pytest.approx(file_bytes(tmp_path / "out"), abs=200)
    assert file_bytes(tmp_path / "out") == sum(
        file.stat().st_size for file in (tmp_path / "out").rglob("*.safetensors")
    )
    assert measure_cost(lm, tmp_path / "out", (1,), (4,)).parameters == lm.size()[0]


def test_what_is_kept_of_one_pooling_is_not_taken_for_another(cls: Path, tmp_path: Path) -> None:
    other = load(str(sentence_folder(tmp_path / "mean", [pooling("mean"), dense(WIDTH, 8), NORMALIZE])))
    lm = load(str(cls))
    data = Calibration(batches(lm, CORPUS), "enumerated", 0)
    assert key_of(lm, data, ()) != key_of(other, data, ())
    assert fingerprint(lm) != fingerprint(other)
    assert key_of(lm, data, ()) == key_of(load(str(cls)), data, ())


def test_a_model_without_weights_declares_the_same(cls: Path) -> None:
    for outline in (load_empty(str(cls)), compressed_skeleton(str(cls)), load(str(cls)).to_meta()):
        assert outline.embedding_pipeline.describe() == "cls pooling, dense 32 → 8 Tanh, unit length"


def test_what_lies_beside_is_carried_as_it_was(cls: Path, tmp_path: Path) -> None:
    save(load(str(cls)), tmp_path / "out")
    for path in ("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/config.json"):
        assert (tmp_path / "out" / path).read_bytes() == (cls / path).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: sentence-transformers" in card and 'SentenceTransformer("path/to/this/folder")' in card
    assert "The vector of a text: cls pooling, dense 32 → 8 Tanh, unit length. Prompts: query; none" in card


def student(lm: LanguageModel, **says: object) -> LanguageModel:
    step = Student(**says)  # type: ignore[arg-type]
    step.check(lm)
    now = step.apply(lm, None).now
    assert now is not None
    return now


def test_a_student_makes_the_same_vectors(cls: Path) -> None:
    lm = load(str(cls))
    for says in ({"blocks": (0,)}, {"weights": "random"}):
        assert student(lm, **says).embedding_pipeline.describe() == lm.embedding_pipeline.describe()
    assert student(lm, classes=3).pipeline is None


def test_a_student_of_another_width(cls: Path, tmp_path: Path) -> None:
    narrow = {"config": {"hidden_size": 16, "intermediate_size": 24}}
    with pytest.raises(
        UserError,
        match=r"dense 32 → 8 Tanh\) reads vectors of 32 numbers, and would get vectors of 16",
    ):
        student(load(str(cls)), **narrow)
    now = student(load(str(sentence_folder(tmp_path / "model", [pooling("cls", "mean"), NORMALIZE]))), **narrow)
    save(now, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())["embedding_dimension"] == 16
    torch.testing.assert_close(encoded(tmp_path / "out"), predicted(now), rtol=1e-4, atol=2e-6)


def test_another_model_as_a_student_declares_its_own_or_the_same(cls: Path, tmp_path: Path) -> None:
    lm = load(str(cls))
    save(load(str(cls)), tmp_path / "plain")
    (tmp_path / "plain" / "modules.json").unlink()
    assert student(lm, model=str(tmp_path / "plain")).embedding_pipeline.describe() == lm.embedding_pipeline.describe()
    own = sentence_folder(tmp_path / "own", [pooling("max")])
    assert student(lm, model=str(own)).embedding_pipeline.describe() == "max pooling"
    (own / "model.safetensors").unlink()
    assert student(lm, model=str(own)).embedding_pipeline.describe() == "max pooling"


def test_a_cross_encoder_is_a_classifier_with_files_beside_it(tmp_path: Path) -> None:
    top = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid"}
    settings = {
        "transformer_task": "sequence-classification",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    }
    model = BY_NAME["bert-classifier"].model()
    folder = sentence_folder(tmp_path / "model", [], model=model, top=top, settings=settings)
    lm = load(str(folder))
    assert lm.task is ModelTask.CLASSIFICATION and torch.equal(outputs(lm.model), outputs(model))
    save(lm, tmp_path / "out")
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_divergence_of_vectors_is_half_their_squared_distance(cls: Path) -> None:
    lm = load(str(cls))
    [batch] = batches(lm, CORPUS)
    with torch.no_grad():
        one, other = predict(lm, batch)[0], predict(compress_everything(load(str(cls)), rank=8), batch)[0]
    expected = 0.5 * (one.values - other.values).square().sum(-1)
    torch.testing.assert_close(divergence(one, other).float(), expected)
