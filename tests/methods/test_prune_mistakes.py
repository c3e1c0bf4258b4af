"""The sentences of mistakes in pruning methods and their patterns."""

import pytest

from laconic.errors import UserError
from laconic.methods import (
    KfacPrune,
    Magnitude,
    RandomStructured,
    SparseGpt,
)
from laconic.methods.registry import parse_method, to_config
from tests.matrices import case


@pytest.mark.parametrize(
    ("spelled", "sentence"),
    [
        ("magnitude:sparsity=1", r"must be in \[0, 1\); got 1"),
        ("magnitude:sparsity=0.5,pattern=2:4", "takes either sparsity or pattern; got both"),
        ("wanda:pattern=4:2", "pattern must be N:M with 0 < N < M, like 2:4; got '4:2'"),
        ("wanda:pattern=2:4:8", "pattern must be N:M with 0 < N < M, like 2:4; got '2:4:8'"),
        ("wanda:pattern=half", "pattern must be N:M with 0 < N < M"),
        ("wanda:within=column", "within must be 'matrix' or 'row'; got 'column'"),
        ("sparsegpt:damping=-1", "damping must be in"),
        ("kfac-prune:score=taylor", "score must be 'partial', 'obd' or 'obs'; got 'taylor'"),
        ("kfac-prune:cap=0", "cap must be in"),
        ("ln-structured:dim=2", "dim must be in"),
        ("ln-structured:n=3", r"\.n must be 1, 2 or 'inf'; got 3"),
        ("ln-structured:pattern=2:4", "no parameter 'pattern'"),
    ],
)
def test_mistakes_are_named(spelled: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_method(spelled, "method")


def test_a_method_is_checked_where_it_is_made_in_python_too() -> None:
    for wrong in (
        lambda: Magnitude(sparsity=1.0),
        lambda: Magnitude(cap=0.0),
        lambda: Magnitude(pattern="8:4"),
        lambda: SparseGpt(damping=-1.0),
        lambda: KfacPrune(shrink=0.0),
        lambda: KfacPrune(damping=0.0),
        lambda: RandomStructured(dim=2),
    ):
        with pytest.raises(UserError, match="must be"):
            wrong()


def test_a_pattern_is_text_that_survives_a_recipe() -> None:
    method = parse_method("sparsegpt:pattern=2:4", "method")
    assert method == SparseGpt(pattern="2:4")
    assert parse_method(to_config(method), "method") == method
    assert method.has_size
    assert not method.without_size().has_size


def test_a_pattern_must_divide_the_inputs() -> None:
    matrix = case("odd", (8, 10))
    with pytest.raises(UserError, match="N:M with an M that divides the 10 inputs of the matrix; got '2:4'"):
        Magnitude(pattern="2:4").compress(matrix.weight, matrix.stats)


def test_without_a_size_it_says_what_is_missing() -> None:
    matrix = case("unsized", (8, 10))
    with pytest.raises(UserError, match="magnitude needs a size: give keep, or magnitude:sparsity=S"):
        Magnitude().compress(matrix.weight, matrix.stats)
