"""Students: of chosen blocks, of random ones, and the model itself with a head for another task."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.calibrate.corpus import Corpus, Example, sample
from laconic.compress import Compress, Narrow, Outcome, Shorten, Step
from laconic.errors import UserError
from laconic.methods import Rtn
from laconic.model import LanguageModel, ModelTask, load
from laconic.progress import silent
from laconic.recipe.flow import apply_steps
from laconic.recipe.sampling import Sampling
from laconic.recover import Finetune, Student
from tests.architectures import ARCHITECTURES, Architecture, batch_for, outputs
from tests.recover.ground import SHORT, data_for, lm_of, with_original


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "t5", "bart"])
def test_a_student_of_chosen_blocks(name: str, tmp_path: Path) -> None:
    lm = with_original(lm_of(name))
    blocks = {"encoder": (1,), "decoder": (1,)} if lm.model.config.is_encoder_decoder else (1,)
    if name == "t5":
        blocks = {"encoder": (0,), "decoder": (0,)}
    outcome = Student(blocks=blocks).apply(lm, None)
    assert outcome.now is not None
    assert outcome.nbytes * 2 == outcome.dense_nbytes
    assert torch.equal(outputs(lm.model), outputs(lm.original.model)), "the model that was given stays as it is"
    shortened = lm.copy()
    others = {stack: (1 - kept[0],) for stack, kept in blocks.items()} if isinstance(blocks, dict) else (0,)
    Shorten(blocks=others).apply(shortened, None)
    assert torch.equal(outputs(outcome.now.model), outputs(shortened.model))


def test_a_random_student_between_the_models_embeddings_and_head() -> None:
    lm = lm_of("bert-classifier")
    now = Student(blocks=(0,), weights="random", seed=3).apply(lm, None).now
    again = Student(blocks=(0,), weights="random", seed=3).apply(lm, None).now
    bare = Student(blocks=(0,), weights="random", outside=False, seed=3).apply(lm, None).now
    assert now is not None and again is not None and bare is not None
    theirs = lm.model.state_dict()
    for tensor_name, tensor in now.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[tensor_name])
        assert torch.equal(tensor, theirs[tensor_name]) == ("layer.0" not in tensor_name) or tensor.ndim < 2
    assert not torch.equal(bare.model.get_parameter("bert.embeddings.word_embeddings.weight"),
                           lm.model.get_parameter("bert.embeddings.word_embeddings.weight"))  # fmt: skip


WITHOUT_CLASSES = ("marian", "marian-two-vocabularies", "led")
"""Architectures that have no class which classifies texts."""


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_a_new_head_on_the_same_encoder(architecture: Architecture) -> None:
    lm = architecture.lm()
    if architecture.name in WITHOUT_CLASSES:
        with pytest.raises(UserError, match="have no class that classifies texts"):
            Student(classes=3).check(lm)
        return
    now = _now(Student(classes=3, seed=1), with_original(lm))
    assert now.task is ModelTask.CLASSIFICATION and now.original is None
    assert now.model.config.num_labels == 3 and now.model.config.id2label == {n: f"LABEL_{n}" for n in range(3)}
    theirs, ours = lm.model.base_model.state_dict(), now.model.base_model.state_dict()
    assert {name for name in ours if name not in theirs and not name.startswith("pooler.")} == set()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if name in theirs)


@pytest.mark.parametrize("name", ["bert-classifier", "distilbert-masked", "albert-masked", "gpt2", "llama", "bart"])
def test_what_the_encoder_says_stays(name: str) -> None:
    lm = lm_of(name)
    batch = {part: tensor for part, tensor in batch_for(lm.model).items() if part != "labels"}
    with torch.no_grad():
        before, now = (model.base_model(**batch)[0] for model in (lm.model, _now(Student(classes=2), lm).model))
    assert torch.equal(now, before)


def test_a_new_head_on_chosen_and_on_random_blocks() -> None:
    lm = lm_of("distilbert-masked")
    layers, words = "distilbert.transformer.layer", "distilbert.embeddings.word_embeddings.weight"
    chosen = _now(Student(classes=2, blocks=(1,)), lm).model.state_dict()
    drawn = _now(Student(classes=2, weights="random"), lm).model.state_dict()
    bare = _now(Student(classes=2, weights="random", outside=False), lm).model.state_dict()
    theirs = lm.model.state_dict()
    one, other = f"{layers}.0.ffn.lin1.weight", f"{layers}.1.ffn.lin1.weight"
    assert torch.equal(chosen[one], theirs[other]) and other not in chosen
    assert not torch.equal(drawn[one], theirs[one]) and torch.equal(drawn[words], theirs[words])
    assert not torch.equal(bare[words], theirs[words])


def test_one_class_is_a_score() -> None:
    now = _now(Student(classes=1), lm_of("bert-classifier"))
    assert now.task is ModelTask.REGRESSION and now.model.config.problem_type == "regression"


def test_a_new_head_has_the_names_and_the_problem_type_that_are_said() -> None:
    now = _now(Student(classes=("joy", "anger"), problem_type="multi_label_classification"), lm_of("bert-classifier"))
    assert now.task is ModelTask.MULTI_LABEL and now.model.config.num_labels == 2
    assert now.model.config.id2label == {0: "joy", 1: "anger"} and now.model.config.label2id == {"joy": 0, "anger": 1}
    assert _now(Student(classes=2, problem_type="regression"), lm_of("bert-classifier")).task is ModelTask.REGRESSION
    # Where the configuration says it, that counts as well.
    step = Student(classes=2, config={"problem_type": "multi_label_classification"})
    assert _now(step, lm_of("bert-classifier")).task is ModelTask.MULTI_LABEL


def test_an_order_goes_on_to_a_head_that_it_fits() -> None:
    lm = lm_of("distilbert-masked").with_label_order(("bad", "good"))
    assert _now(Student(classes=2), lm).label_order == ("bad", "good")
    assert _now(Student(classes=3), lm).label_order is None
    assert _now(Student(classes=("a", "b")), lm).label_order is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"classes": ("a", "a")}, "classes must be names that differ; got 'a, a'"),
        ({"problem_type": "regression", "blocks": (0,)}, "problem_type must be left out without classes"),
        ({"classes": 1, "problem_type": "single_label_classification"}, "would always be right"),
    ],
)
def test_what_no_head_can_be_is_refused_when_it_is_said(given: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Student(**given)


def test_a_new_head_is_drawn_with_the_seed() -> None:
    lm = lm_of("bert-classifier")
    heads = [_now(Student(classes=2, seed=seed), lm) for seed in (0, 0, 1)]
    first, again, other = (now.model.get_parameter("classifier.weight") for now in heads)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_pooler_that_is_not_in_the_file_is_the_same_at_every_loading(tmp_path: Path) -> None:
    lm = lm_of("bert-base")
    tensors = {name: tensor for name, tensor in lm.model.state_dict().items() if not name.startswith("pooler.")}
    lm.model.save_pretrained(tmp_path, state_dict=tensors)
    first, again = (_now(Student(classes=2), load(str(tmp_path))).model.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@dataclass(frozen=True, kw_only=True)
class Noted(Step):
    """Notes what it is given."""

    name = "noted"
    seen: list[tuple[LanguageModel, Calibration]] = field(default_factory=list)

    @property
    def needs_original(self) -> bool:
        return True

    @property
    def needs_data(self) -> bool:
        return True

    def check(self, lm: LanguageModel) -> None:
        """Anything goes."""

    def dry_run(self, lm: LanguageModel) -> None:
        """Nothing changes."""

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        assert data is not None
        self.seen.append((lm, data))
        return Outcome(plan={}, before={}, after={})


PAIRS = Corpus(
    "words", "train", tuple(Example("a" * (1 + at), "b", float(at % 2)) for at in range(12)), classes=("no", "yes")
)


@pytest.mark.parametrize("name", ["bert-classifier", "bert-base", "gpt2"])
def test_rows_are_read_again_with_the_classes_of_the_new_head(name: str) -> None:
    lm = lm_of(name)
    if name == "bert-classifier":
        lm.model.config.id2label = {0: "yes", 1: "no"}
    sampling = Sampling(samples=8, max_length=16, labels="data")
    data = sampling.of(lm, PAIRS, silent)
    noted = Noted()
    apply_steps(lm, [Student(classes=2), noted], data)
    ((now, read),) = noted.seen
    directly = sampling.of(now, PAIRS, silent)
    labels = [batch["labels"].tolist() for batch in read.batches]
    assert labels == [batch["labels"].tolist() for batch in directly.batches]
    assert sum(map(len, labels)) == 8 and sum(map(sum, labels)) == sum(
        row.label == 1 for row in sample(PAIRS, 8, 0).examples
    )


def test_what_comes_later_is_compared_with_the_model_that_was_prepared() -> None:
    lm, noted = lm_of("distilbert-masked"), Noted()
    data = Sampling(samples=8, max_length=16).of(lm, PAIRS, silent)
    prepares = [Student(classes=2), Finetune(**SHORT, held_out=2)]
    apply_steps(lm, [*prepares, Shorten(drop=1, select="last"), noted, Finetune(**SHORT, held_out=2), noted], data)
    prepared, _ = apply_steps(lm, prepares, data)
    for now, _ in noted.seen:
        assert now.original is not None
        assert torch.equal(outputs(now.original.model), outputs(prepared.model))
        assert list(map(bool, now.dropped))[:1] == [True]


def test_a_decoder_gets_the_padding_that_its_head_needs() -> None:
    lm = lm_of("llama")
    lm.model.config.pad_token_id, lm.model.config.eos_token_id = None, [2, 3]
    now = _now(Student(classes=2), lm)
    assert now.model.config.pad_token_id == 2
    Finetune().check(now)


def _now(step: Student, lm: LanguageModel) -> LanguageModel:
    now = step.apply(lm, None).now
    assert now is not None
    return now


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Student(blocks=(0, 5)), "blocks must be some of 0 to 1"),
        (Student(blocks=(1, 0)), "each once and in order"),
        (Student(config={"hiden_size": 16}), "did you mean 'hidden_size'"),
    ],
)
def test_what_does_not_fit_is_named(step: Student, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        step.apply(lm_of("bert-classifier"), None)


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Compress(method=Rtn(bits=8)), "put the step first"),
        (Narrow(heads=0.5), "before the step that removes parts of"),
    ],
)
def test_a_new_head_is_put_on_a_plain_model(step: Step, sentence: str) -> None:
    lm = lm_of("bert-classifier")
    step.apply(lm, data_for(lm))
    with pytest.raises(UserError, match=sentence):
        Student(classes=2).check(lm)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Student, "has no description of the student"),
        (lambda: Student(model="x", blocks=(1,)), "model must be left out"),
        (lambda: Student(model="x", classes=2), "model must be left out"),
        (lambda: Student(classes=0), r"classes must be in \[1, ∞\); got 0"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_said(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        # The class builds it, and no attention of it can run.
        (
            {"num_key_value_heads": 3},
            r"The student does not run with config \{'num_key_value_heads': 3\}: .*; give values that fit together\.",
        ),
        (
            {"model_type": "bert"},
            r"config must be without model_type, which identifies the model; use model for another one",
        ),
        ({"dtype": "int3"}, "config must be without dtype"),
        ({"rms_norm_eps": None}, r"config does not fit '.*': Field 'rms_norm_eps' expected float, got NoneType"),
    ],
)
def test_a_configuration_that_makes_no_student_is_told_before_any_training(config: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Student(config=config).apply(lm_of("llama"), None)
