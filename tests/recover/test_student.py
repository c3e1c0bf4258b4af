"""Students: of chosen blocks, of random ones, and the model itself with a head for another task."""

from pathlib import Path

import pytest
import torch

from laconic.calibrate.corpus import Corpus, Example
from laconic.compress import Compress, Shorten
from laconic.errors import UserError
from laconic.methods import Rtn
from laconic.model import Task
from laconic.progress import silent
from laconic.recipe import recipe_from, run
from laconic.recipe.flow import Sampling, apply_steps
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


def _states(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the encoder itself gives."""
    encoder = model.base_model
    with torch.no_grad():
        return encoder(**{name: value for name, value in batch.items() if name != "labels"})[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_a_new_head_on_the_same_encoder(architecture: Architecture) -> None:
    lm = architecture.lm()
    if architecture.name in WITHOUT_CLASSES:
        with pytest.raises(UserError, match="have no class that classifies texts"):
            Student(classes=3).check(lm)
        return
    now = Student(classes=3, seed=1).apply(with_original(lm), None).now
    assert now is not None and now.task is Task.CLASSIFICATION and now.original is None
    assert now.model.config.num_labels == 3 == len(now.model.config.id2label)
    theirs = {name.split(".", 1)[-1]: tensor for name, tensor in lm.model.state_dict().items()}
    theirs |= dict(lm.model.state_dict())
    blocks = [path for _, found in now.stacks() for path, _ in found]
    assert blocks
    for name, tensor in now.model.state_dict().items():
        if name.startswith(tuple(f"{path}." for path in blocks)):
            assert torch.equal(tensor, theirs[name] if name in theirs else theirs[name.split(".", 1)[-1]]), name


@pytest.mark.parametrize("name", ["bert-classifier", "distilbert-masked", "gpt2", "llama"])
def test_what_the_encoder_says_stays(name: str) -> None:
    lm = lm_of(name)
    now = Student(classes=2).apply(lm, None).now
    assert now is not None
    batch = batch_for(lm.model)
    assert torch.equal(_states(now.model, batch), _states(lm.model, batch))


def test_one_class_is_a_score() -> None:
    now = Student(classes=1).apply(lm_of("bert-classifier"), None).now
    assert now is not None and now.task is Task.REGRESSION and now.model.config.problem_type == "regression"


def test_a_new_head_is_drawn_with_the_seed() -> None:
    lm = lm_of("bert-classifier")
    heads = [Student(classes=2, seed=seed).apply(lm, None).now for seed in (0, 0, 1)]
    first, again, other = (now.model.get_parameter("classifier.weight") for now in heads if now is not None)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_follows_a_new_head_reads_the_rows_with_its_classes() -> None:
    lm = lm_of("distilbert-masked")
    rows = Corpus(
        "words", "train", tuple(Example(text, label=float(at % 2)) for at, text in enumerate(["a", "be"] * 12))
    )
    data = Sampling(samples=8, max_length=16).of(lm, rows, silent)
    steps = [Student(classes=2), Finetune(**SHORT, held_out=4), Compress(method=Rtn(bits=8))]
    now, changes = apply_steps(lm, steps, data)
    losses = [line["eval_loss"] for line in changes.found[1]["finetune"]["lines"] if "eval_loss" in line]
    assert now.task is Task.CLASSIFICATION and min(losses) < losses[0]


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


def test_a_new_head_is_put_on_a_plain_model() -> None:
    lm = lm_of("bert-classifier")
    Compress(method=Rtn(bits=8)).apply(lm, data_for(lm))
    with pytest.raises(UserError, match="put the step before those that compress"):
        Student(classes=2).apply(lm, None)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Student, "needs to know the student"),
        (lambda: Student(model="x", blocks=(1,)), "model must be left out"),
        (lambda: Student(model="x", classes=2), "model must be left out"),
        (lambda: Student(classes=0), "classes must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_said(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize("line", [{"correct": {}}, {"distil": {}}])
def test_nothing_is_compared_with_a_model_of_another_task(tiny_model: Path, tmp_path: Path, line: dict) -> None:
    steps = [{"student": {"classes": 7}}, line]
    recipe = recipe_from({"model": str(tiny_model), "data": "builtin:pydoc", "steps": steps})
    with pytest.raises(UserError, match=r"steps\[1\].* cannot follow .*student: .* predicts something else"):
        run(recipe, tmp_path / "out")
