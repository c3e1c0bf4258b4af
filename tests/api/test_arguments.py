"""Arguments of the Python entry that are of a wrong kind are one sentence each, before anything is done."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import laconic
from laconic.api.compress import DEFAULT_KEEP
from laconic.errors import UserError
from laconic.methods import Svd
from tests.architectures import BY_NAME
from tests.tokens import letters

TEXTS = ["a cat", "is good"] * 4
MODEL = "model must be a loaded model of transformers, a folder or a hub name; got an object of the class"
METHOD = "must be a method or a step, by its name or as an object"
KEEP = "keep must be a number in (0, 1], or a mapping of groups to such numbers; got"
TARGETS = "targets must be a group or glob, or a list of those; got"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (None, f"{MODEL} NoneType."),
        (3, f"{MODEL} int."),
        (torch.nn.Linear(2, 2), f"{MODEL} Linear."),
        (BY_NAME["llama"].model().config, f"{MODEL} LlamaConfig."),
        (
            torch.nn.Module.to(BY_NAME["llama"].model(), "meta"),
            "The model has no values in 'model.embed_tokens.weight', which is on the meta device; load it by "
            "from_pretrained without device_map='meta'.",
        ),
    ],
    ids=["None", "int", "Linear", "config", "meta"],
)
def test_models(model: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        laconic.compress(model, "svd", 0.5)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (None, f"method {METHOD} like Svd(rank=8), or a list of those; got None."),
        (5, f"method {METHOD} like Svd(rank=8), or a list of those; got 5."),
        ([], f"method {METHOD} like Svd(rank=8), or a list of those; got []."),
        (b"svd", f"method {METHOD} like Svd(rank=8), or a list of those; got b'svd'."),
        # Its sizes would be left out, and those of a set run in any order.
        ({"svd": {"rank": 2}}, f"method {METHOD} like Svd(rank=8), or a list of those; got {{'svd': {{'rank': 2}}}}."),
        ({"svd"}, f"method {METHOD} like Svd(rank=8), or a list of those; got {{'svd'}}."),
        (Svd, f"method {METHOD} like Svd(rank=8), or a list of those; got <class 'laconic.methods.lowrank.svd.Svd'>."),
        (["svd", ["svd"]], f"method[1] {METHOD}; got ['svd']."),
    ],
    ids=str,
)
def test_methods(method: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        laconic.compress(BY_NAME["llama"].model(), method)


@pytest.mark.parametrize(
    ("argument", "value", "sentence"),
    [
        ("keep", "0.5", f"{KEEP} '0.5'."),
        ("keep", [0.5], f"{KEEP} [0.5]."),
        ("keep", True, f"{KEEP} True."),
        ("keep", {3: 0.5}, f"{KEEP} {{3: 0.5}}."),
        ("keep", {"ffn": "half"}, f"{KEEP} {{'ffn': 'half'}}."),
        ("keep", torch.tensor(0.5), f"{KEEP} tensor(0.5000)."),
        ("allocate", ["uniform"], "allocate must be the name of an allocation; got ['uniform']."),
        ("targets", None, f"{TARGETS} None."),
        ("targets", 3, f"{TARGETS} 3."),
        ("targets", [None], f"{TARGETS} [None]."),
        ("samples", "3", "samples must be a whole number; got '3'."),
        ("samples", 2.5, "samples must be a whole number; got 2.5."),
        ("samples", True, "samples must be a whole number; got True."),
        ("seed", None, "seed must be a whole number; got None."),
        ("max_length", "9", "max_length must be a whole number; got '9'."),
        ("batch_size", 2.0, "batch_size must be a whole number; got 2.0."),
        # It would be taken for yes.
        ("sequential", "no", "sequential must be True or False; got 'no'."),
        ("anchored", 0, "anchored must be True or False; got 0."),
        ("allow_dense", "no", "allow_dense must be True or False; got 'no'."),
        ("label_order", "ab", "label_order must be a list of names of classes; got 'ab'."),
        ("track", None, "track must be a function like laconic.progress.silent; got None."),
        (
            "tokenizer",
            "bert-base",
            "tokenizer must be a tokenizer of transformers, as AutoTokenizer.from_pretrained returns; got an object of "
            "the class str.",
        ),
        ("data", 5, "data must be the name of a source, or a list of texts; got 5."),
        ("data", {"text": "a cat"}, "data must be the name of a source, or a list of texts; got {'text': 'a cat'}."),
        ("data", ["a cat", None], "data[1] must be a text; got None."),
        ("data", [{"text": "a cat"}], "data[0] must be a text; got {'text': 'a cat'}."),
        ("data", torch.ones(1), "data[0] must be a text; got tensor(1.)."),
        ("data", [], "data has no texts; give some, or the name of a source."),
        # Nothing would be known of any matrix.
        ("data", [" ", "\n", ""], "data has no texts; give some, or the name of a source."),
    ],
    ids=str,
)
def test_others(argument: str, value: Any, sentence: str) -> None:
    model, usual = BY_NAME["llama"].model(), {"keep": 0.5, "data": TEXTS, "tokenizer": letters()}
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        laconic.compress(model, "wanda", **{**usual, argument: value})


def test_an_explicit_keep_is_never_taken_for_the_default() -> None:
    default = inspect.signature(laconic.compress).parameters["keep"].default
    assert default == "auto"
    laconic.compress(BY_NAME["llama"].model(), "svd:rank=2")
    laconic.compress(BY_NAME["llama"].model(), "svd:rank=2", default)
    half = laconic.compress(BY_NAME["llama"].model(), "svd:multiple=1")
    assert half.sites == laconic.compress(BY_NAME["llama"].model(), "svd:multiple=1", keep=DEFAULT_KEEP).sites
    with pytest.raises(UserError, match=r"^keep does not apply to 'svd': its size is set by rank"):
        laconic.compress(BY_NAME["llama"].model(), "svd:rank=2", DEFAULT_KEEP)
    with pytest.raises(UserError, match="needs a size"):
        laconic.compress(BY_NAME["llama"].model(), "svd", keep=None)


def test_paths_are_names(tmp_path: Path) -> None:
    BY_NAME["llama"].model().save_pretrained(tmp_path / "model")
    letters().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    by_path = laconic.compress(tmp_path / "model", "wanda", 0.5, data=tmp_path / "texts.txt").model
    by_name = laconic.compress(str(tmp_path / "model"), "wanda", 0.5, data=str(tmp_path / "texts.txt")).model
    assert all(map(torch.equal, by_path.state_dict().values(), by_name.state_dict().values()))


def test_texts_may_come_one_by_one() -> None:
    models = [
        laconic.compress(BY_NAME["llama"].model(), "wanda", 0.5, data=data, tokenizer=letters()).model
        for data in (TEXTS, iter(TEXTS))
    ]
    assert all(map(torch.equal, *(model.state_dict().values() for model in models)))


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (None, ""),
        (torch.nn.Linear(2, 2), ""),
        (torch.nn.Sequential(BY_NAME["gpt2"].model()), "; give the GPT2LMHeadModel inside of it, which is its get_sub"),
    ],
    ids=["None", "Linear", "a model inside"],
)
def test_materialize(model: Any, remedy: str) -> None:
    sentence = "model must be a loaded model of transformers; got an object of the class "
    with pytest.raises(UserError, match=f"^{re.escape(sentence + type(model).__name__ + remedy)}"):
        laconic.materialize(model)
