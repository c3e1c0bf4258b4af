"""The notation of methods, and the error for each mistake in it."""

import pytest

from laconic.errors import UserError
from laconic.methods import Drone, KfacSvd, Svd
from laconic.methods.registry import parse_method, to_config


@pytest.mark.parametrize(
    ("value", "method"),
    [
        ("svd", Svd()),
        ("svd:rank=64,multiple=16", Svd(rank=64, multiple=16)),
        ({"svd": {"rank": 64}}, Svd(rank=64)),
        ({"drone": None}, Drone()),
        ("kfac-svd:shrink=0.3, rank_ratio=0.5", KfacSvd(shrink=0.3, rank_ratio=0.5)),
    ],
)
def test_every_spelling(value, method):
    assert parse_method(value, "method") == method
    assert parse_method(to_config(method), "method") == method


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("kfacsvd", "There is no method 'kfacsvd': did you mean 'kfac-svd'?"),
        ("svd:rnk=3", "The method 'svd' has no parameter 'rnk': did you mean 'rank'? known are multiple"),
        ("svd:rank=0", "steps[0].svd.rank must be in [1, ∞); got 0."),
        ("svd:rank=many", "steps[0].svd.rank must be a whole number"),
        ("svd:rank=[", "steps[0], rank must be a YAML value; got '['."),
        ("svd:rank", "steps[0] must be NAME:parameter=value,…; got 'rank'."),
        ("svd:rank=3,rank_ratio=0.5", "svd takes either rank or rank_ratio; got both."),
        ({"kfac-svd": {"shrink": 0}}, "steps[0].kfac-svd.shrink must be in (0, 1]; got 0."),
        (["svd"], "steps[0] must be a method's name"),
        ({"svd": {}, "drone": {}}, "steps[0] must be a method's name"),
    ],
)
def test_every_mistake_is_one_sentence_with_its_place(value, sentence):
    with pytest.raises(UserError) as caught:
        parse_method(value, "steps[0]")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_method_without_a_size_says_what_to_give():
    from tests.matrices import case

    matrix = case("no size", (24, 40))
    with pytest.raises(UserError, match="svd needs a size"):
        Svd().compress(matrix.weight, matrix.stats)


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank_ratio": 1.5}, {"multiple": 0}])
def test_python_callers_get_the_same_checks(bad):
    with pytest.raises(UserError, match="must be"):
        Svd(**bad)
