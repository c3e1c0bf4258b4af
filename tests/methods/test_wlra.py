"""WLRA, which solves for every size separately."""

import pytest
import torch

from laconic.calibrate import AbsMean, Fisher
from laconic.errors import UserError
from laconic.methods import Asvd, Fwsvd, Svd, Wlra
from laconic.methods.lowrank.asvd import LEAST_ACTIVATION, activation_scales
from laconic.methods.registry import parse_method
from tests.matrices import Case, case, stats_of


def ranks_of(method: Wlra, matrix: Case) -> list[int]:
    candidates = method.candidates(matrix.weight, matrix.stats).all
    return [
        candidate.method.rank
        for candidate in candidates
        if isinstance(candidate.method, Wlra) and candidate.method.rank is not None
    ]


@pytest.mark.parametrize(
    ("shape", "multiple", "expected"),
    [
        ((24, 40), 1, [1, 3, 5, 7, 8, 10, 12, 14]),
        ((64, 64), 4, [1, 4, 8, 12, 16, 20, 24, 28]),
        ((24, 40), 100, [1, 3, 5, 7, 8, 10, 12, 14]),
        ((1, 9), 1, []),
    ],
)
def test_its_ladder_is_coarse_and_reaches_rank_1_and_the_break_even(shape, multiple, expected):
    assert ranks_of(Wlra(multiple=multiple, iterations=1), case("ladder", shape)) == expected


def test_its_losses_are_solved_for_once():
    matrix = case("remembered", (24, 40))
    method = Wlra(multiple=1)
    first = method.candidates(matrix.weight, matrix.stats)
    kept = dict(matrix.stats.solutions)
    assert method.candidates(matrix.weight, matrix.stats) == first
    assert matrix.stats.solutions == kept
    Wlra(multiple=1, solver="als").candidates(matrix.weight, matrix.stats)
    method.candidates(2 * matrix.weight, matrix.stats)
    assert len(matrix.stats.solutions) == len(kept) + 2


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_it_beats_the_methods_that_approximate_its_weights(shape):
    matrix = case("element-wise", shape)
    Phi = matrix.stats[Fisher].matrix

    def loss(method: Svd | Fwsvd | Wlra) -> float:
        E = matrix.weight - method.compress(matrix.weight, matrix.stats).dense()
        return (Phi * E.double().square()).sum().item()

    assert loss(Wlra(rank=9)) < loss(Fwsvd(rank=9)) < loss(Svd(rank=9))


@pytest.mark.parametrize(
    ("spelled", "sentence"),
    [
        ("wlra:solver=newton", r"method\.wlra\.solver must be 'em', 'nesterov', 'anderson' or 'als'; got 'newton'\."),
        ("wlra:iterations=0", r"method\.wlra\.iterations must be in \[1, ∞\); got 0\."),
        ("wlra:rank=0", r"method\.wlra\.rank must be in \[1, ∞\); got 0\."),
        ("asvd:alpha=3", r"method\.asvd\.alpha must be in \(0, 2\]; got 3\."),
    ],
)
def test_a_wrong_parameter_is_one_sentence(spelled, sentence):
    with pytest.raises(UserError, match=f"^{sentence}$"):
        parse_method(spelled, "method")


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"iterations": 0}, "wlra.iterations must be in [1, ∞); got 0."),
        ({"rank": 0}, "wlra.rank must be in [1, ∞); got 0."),
        ({"rank_ratio": 1.5}, "wlra.rank_ratio must be in (0, 1]; got 1.5."),
        ({"multiple": 0}, "wlra.multiple must be in [1, ∞); got 0."),
        ({"rank": 3, "rank_ratio": 0.5}, "wlra takes either rank or rank_ratio; got both."),
    ],
)
def test_a_wrong_parameter_in_python_is_the_same_mistake(parameters, sentence):
    with pytest.raises(UserError) as mistake:
        Wlra(**parameters)
    assert str(mistake.value) == sentence


def test_without_a_size_it_says_so():
    matrix = case("no size", (24, 40))
    assert not Wlra().has_size
    with pytest.raises(UserError, match="wlra needs a size"):
        Wlra().compress(matrix.weight, matrix.stats)
    assert Wlra(rank_ratio=0.5).compress(matrix.weight, matrix.stats).rank == 12
    assert Wlra(rank=500).compress(matrix.weight, matrix.stats).rank == 24
    assert Wlra(rank=3).without_size() == Wlra(rank_ratio=0.5).without_size() == Wlra()


def test_an_input_that_was_always_zero_has_a_small_scale_and_not_none():
    x = torch.randn(50, 6).abs() + 0.5
    x[:, 2] = 0
    stats = stats_of(x, torch.randn(50, 4))
    scales = activation_scales(stats[AbsMean].vector, 0.5)
    assert scales[2].item() == pytest.approx(LEAST_ACTIVATION**0.5)
    assert (scales[[0, 1, 3, 4, 5]] > 0.5).all()
    assert torch.isfinite(Asvd(rank=2).compress(torch.randn(4, 6), stats).dense()).all()
    assert torch.equal(activation_scales(torch.zeros(6), 0.5), torch.ones(6, dtype=torch.float64))
