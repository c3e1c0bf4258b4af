"""Every method and step judges what it is made of by its annotations, in Python as in a recipe."""

import copy
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from pydantic import Field

from laconic.calibrate.passes import Workload
from laconic.compress import Compress, Shorten
from laconic.errors import UserError
from laconic.evaluate import Conditions
from laconic.methods import METHODS, Gptq, LnStructured, Magnitude, Plus, Rtn, Svd
from laconic.methods.registry import to_config
from laconic.recipe.parse import STEPS, method_or_step
from laconic.recipe.sampling import Sampling
from laconic.recipe.schema import EvaluationConfig, Recipe
from laconic.recover import Distil, Student
from laconic.recover.layer_matching import Match
from laconic.typed import Typed

NEEDED: dict[str, dict[str, Any]] = {
    "compress": {"method": Svd(rank=1)},
    "shorten": {"drop": 1},
    "narrow": {"heads": 0.5},
    "shrink-heads": {"keep": 0.5},
    "student": {"blocks": (0,)},
    "recipe": {"model": "folder", "steps": ()},
    "match": {"teacher": 0, "student": 0},
}
"""The required fields of each class."""
KINDS: tuple[Any, ...] = (*METHODS, *STEPS, Match, Workload, Sampling, Conditions, EvaluationConfig, Recipe)
EVERY = [
    pytest.param(kind, name, hint, id=f"{kind.name}.{name}")
    for kind in KINDS
    for name, hint in get_type_hints(kind, include_extras=True).items()
    if name in {field.name for field in fields(kind)}
]


class Strange:
    """A class that no field accepts."""

    def __repr__(self) -> str:
        return "<strange>"


def made(kind: Any, **given: object) -> Any:
    return kind(**NEEDED.get(kind.name, {}) | given)


def alternatives(hint: Any) -> Iterator[Any]:
    """The members of a union, without None and without bounds."""
    if get_origin(hint) is Annotated:
        yield from alternatives(get_args(hint)[0])
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from alternatives(part)
    elif hint is not NoneType:
        yield get_origin(hint) or hint


def wrong_for(hint: Any) -> Iterator[object]:
    """Values of kinds that `hint` does not name."""
    known = set(alternatives(hint))
    yield Strange()
    yield b"bytes"
    yield {1, 2}
    if not known & {str}:
        yield "nonsense"
        yield "2"
        yield ""
    if not known & {int, float, Literal}:
        yield 3
    if not known & {float}:
        yield 2.5
    if bool not in known:
        yield True
        yield np.bool_(False)
    if not known & {int, float, bool}:
        yield 1j
    if tuple not in known:
        yield [1]
        yield ("a",)
    if dict not in known:
        yield {"a": 1}
    if float in known:
        yield float("nan")
        yield float("inf")
    if NoneType not in get_args(hint):
        yield None


@pytest.mark.parametrize(("kind", "name", "hint"), EVERY)
def test_a_value_of_a_wrong_kind_is_one_sentence_that_names_the_field(kind: Any, name: str, hint: Any) -> None:
    for value in wrong_for(hint):
        with pytest.raises(UserError) as caught:
            made(kind, **{name: value})
        said = str(caught.value)
        assert said.startswith(f"{kind.name}.{name} must be "), said
        assert "; got " in said and said.endswith("."), said


@pytest.mark.parametrize(("kind", "name", "hint"), EVERY)
def test_every_default_is_right(kind: Any, name: str, hint: Any) -> None:
    plain = made(kind)
    assert replace(plain, **{name: getattr(plain, name)}) == plain


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Svd(rank="2"), "svd.rank must be a whole number; got '2'."),  # type: ignore[arg-type]
        (lambda: Svd(rank=True), "svd.rank must be a whole number, no truth value; got True."),
        (lambda: Gptq(act_order="no"), "gptq.act_order must be true or false; got 'no'."),  # type: ignore[arg-type]
        (lambda: Rtn(group_size="row"), "rtn.group_size must be a whole number or 'channel' or 'tensor'; got 'row'."),  # type: ignore[arg-type]
        (lambda: LnStructured(n="2"), "ln-structured.n must be 1, 2 or 'inf'; got '2'."),  # type: ignore[arg-type]
        (lambda: Plus(base="rtn"), "plus.base must be an object of the class Method; got 'rtn'."),  # type: ignore[arg-type]
        (lambda: made(Compress, keep={"ffn": "half"}), "compress.keep.ffn must be a number; got 'half'."),
        (
            lambda: made(Compress, keep={1: 0.5}),
            "compress.keep must be a number or a mapping whose keys are text; got {1: 0.5}.",
        ),
        (lambda: made(Compress, targets="ffn"), "compress.targets must be a list; got 'ffn'."),
        (lambda: made(Compress, targets=["ffn", 3]), "compress.targets[1] must be text; got 3."),
        (
            lambda: made(Compress, plan={"a": 4}),
            "compress.plan.a must be an object of the class Method; got 4.",
        ),
        (lambda: Student(blocks={"encoder": [0, None]}), "student.blocks.encoder[1] must be a whole number; got None."),  # type: ignore[dict-item]
        (
            lambda: Match(teacher=(1,), student=0),
            "match.teacher must be a whole number or a list of 2; got (1,).",
        ),  # type: ignore[arg-type]
        # And what the annotations alone say of sizes.
        (lambda: Workload(batch=0), "workload.batch must be in [1, ∞); got 0."),
        (lambda: Distil(weight_decay=-1), "distil.weight_decay must be in [0, ∞); got -1.0."),
        (lambda: Distil(learning_rate=1.5), "distil.learning_rate must be in (0, 1]; got 1.5."),
        (lambda: Student(seed=-1, blocks=(0,)), "student.seed must be in [0, ∞); got -1."),
        (lambda: Student(blocks=(0, -2)), "student.blocks[1] must be in [0, ∞); got -2."),
        (lambda: Student(blocks={"decoder": [-2]}), "student.blocks.decoder[0] must be in [0, ∞); got -2."),
        (lambda: Student(classes=[]), "student.classes must be a list of at least 1; got ()."),  # type: ignore[arg-type]
        (lambda: Shorten(drop={"encoder": -1}), "shorten.drop.encoder must be in [0, ∞); got -1."),
    ],
)
def test_the_sentence_says_what_is_meant(make: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("line", "make"),
    [
        ("rtn:group_size=row", lambda: Rtn(group_size="row")),  # type: ignore[arg-type]
        ("svd:rank=[1]", lambda: Svd(rank=[1])),  # type: ignore[arg-type]
        ("gptq:bits=true", lambda: Gptq(bits=True)),
        ("magnitude:within=line", lambda: Magnitude(within="line")),  # type: ignore[arg-type]
        ("magnitude:pattern=3", lambda: Magnitude(pattern=3)),  # type: ignore[arg-type]
        ("ln-structured:n=3", lambda: LnStructured(n=3)),  # type: ignore[arg-type]
        ("distil:weight_decay=-1.0", lambda: Distil(weight_decay=-1.0)),
        ("distil:freeze=3", lambda: Distil(freeze=3)),  # type: ignore[arg-type]
        ("shorten:drop={encoder: x}", lambda: Shorten(drop={"encoder": "x"})),  # type: ignore[dict-item]
        ("shorten:blocks={encoder: 0}", lambda: Shorten(blocks={"encoder": 0})),  # type: ignore[dict-item]
        ("student:blocks={encoder: [0, a]}", lambda: Student(blocks={"encoder": (0, "a")})),  # type: ignore[dict-item]
        ("student:blocks=[0, -1]", lambda: Student(blocks=(0, -1))),
        ("rtn:group_size=0.5", lambda: Rtn(group_size=0.5)),  # type: ignore[arg-type]
    ],
)
def test_a_recipe_says_the_same(line: str, make: Any) -> None:
    with pytest.raises(UserError) as in_python:
        make()
    with pytest.raises(UserError) as in_a_recipe:
        method_or_step(line, "--method")
    assert str(in_a_recipe.value) == f"--method.{in_python.value}"


def test_a_recipe_names_the_fewest_that_a_list_may_have() -> None:
    with pytest.raises(UserError, match=r"^--method.student.classes must be a list of at least 1; got \[\]\.$"):
        method_or_step("student:classes=[]", "--method")


def test_what_stands_for_a_value_is_taken_for_it() -> None:
    assert Svd(rank=np.int64(3)) == Svd(rank=8.0 - 5) == Svd(rank=3)  # type: ignore[arg-type]
    # A recipe holds no number of NumPy.
    assert type(to_config(Svd(rank=np.int32(3)))["svd"]["rank"]) is int  # type: ignore[arg-type]
    assert type(Magnitude(sparsity=np.float32(0.5)).sparsity) is float  # type: ignore[arg-type]
    assert type(Magnitude(sparsity=0).sparsity) is float
    assert Gptq(act_order=np.bool_(False)).act_order is False  # type: ignore[arg-type]
    assert made(Compress, targets=["ffn"]).targets == ("ffn",)  # type: ignore[arg-type]
    assert Student(blocks={"encoder": [0, 2]}).blocks == {"encoder": (0, 2)}  # type: ignore[dict-item]
    assert Student(classes=["no", True, 3]).classes == ("no", True, 3)  # type: ignore[arg-type]
    assert Student(model=Path("a/b")).model == "a/b"  # type: ignore[arg-type]
    assert Match(teacher=1, student=0, feature="values").feature is Match(teacher=1, student=0).feature.VALUES  # type: ignore[arg-type]


def test_an_outside_class_is_judged_without_a_line_of_its_own() -> None:
    class Colour(Enum):
        RED = "red"
        BLUE = "blue"

    @dataclass(frozen=True, kw_only=True)
    class Own(metaclass=Typed):
        name: ClassVar[str] = "own"

        share: Annotated[float, Field(gt=0, le=1)] = 0.5
        colour: Colour = Colour.RED
        anything: object = None
        names: dict[str, Any] | None = None

    assert Own(colour="blue", anything=Strange).colour is Colour.BLUE  # type: ignore[arg-type]
    assert Own(names={"a": Strange}).names == {"a": Strange}
    with pytest.raises(UserError, match=r"^own.colour must be 'red' or 'blue'; got 'green'\.$"):
        Own(colour="green")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^own.share must be in \(0, 1\]; got 2\.0\.$"):
        Own(share=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'shade'"):
        Own(shade=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_equal(kind: Any) -> None:
    one = made(kind)
    assert copy.deepcopy(one) == copy.copy(one) == pickle.loads(pickle.dumps(one)) == one
