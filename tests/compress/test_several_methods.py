"""Plans of several methods: predicted losses that are wrong for one of them are corrected by measured ones."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import Calibration, LayerStats
from laconic.compress import Compress
from laconic.compress.allocators import several_methods
from laconic.compress.allocators.corrected import ALLOCATED
from laconic.compress.allocators.several_methods import ROUNDS
from laconic.errors import UserError
from laconic.methods import LOSS_STATISTICS, AnyOf, Candidates, Gptq, Method, Rtn, Svd
from laconic.methods.any_of import is_size_of
from laconic.model import LanguageModel
from tests.stories import Ground, ground_of

FEW_BITS = Rtn(group_size=32)
TARGETS = ("model.layers.[01].*",)


@dataclass(frozen=True, kw_only=True)
class Optimist(Svd):
    """A truncated SVD that predicts a millionth of its loss."""

    name = "optimist"

    def candidates(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Candidates:
        offered = super().candidates(weight, stats).all
        return Candidates(tuple(replace(option, loss=1e-6 * option.loss) for option in offered))


@pytest.fixture(scope="module")
def ground(shared_models: Path, shared_data: Path) -> Ground:
    return ground_of(shared_models, shared_data, LOSS_STATISTICS, rows=16, max_length=64)


def solved(ground: Ground, method: Method, keep: float) -> tuple[LanguageModel, dict, dict[str, Method | None]]:
    """The compressed model, the record of its plans, and the plan that was taken."""
    small = ground.lm.shallow_copy()
    step = Compress(method=method, keep=keep, allocate="spectrum", targets=TARGETS)
    outcome = step.apply_with(small, ground.stats, ground.data)
    assert sum(outcome.after.values()) <= keep * sum(outcome.before.values())
    return small, dict(outcome.found[ALLOCATED]), dict(outcome.plan)


def test_a_method_whose_predictions_are_too_low_is_not_preferred(ground: Ground) -> None:
    small, record, plan = solved(ground, AnyOf(methods=(FEW_BITS, Optimist(multiple=1))), 0.2)
    alone, _, _ = solved(ground, FEW_BITS, 0.2)
    assert ground.judge(small) <= 1.05 * ground.judge(alone)
    assert record["taken"] in record["kl"]
    assert len(record["kl"]) <= ROUNDS + 2
    assert record["kl"][record["taken"]] == min(record["kl"].values())
    kinds = {FEW_BITS if is_size_of(method, FEW_BITS) else Optimist for method in plan.values() if method}
    assert kinds == {FEW_BITS}


def test_both_methods_are_used_where_one_of_them_has_no_size_so_small(ground: Ground) -> None:
    """2 bits take 8 % of the bytes, so at 6 % some matrices become low-rank."""
    method = AnyOf(methods=(Gptq(group_size=64), Svd(multiple=1)))
    _, _, plan = solved(ground, method, 0.06)
    assert {each.name for each in plan.values() if each} == {"gptq", "svd"}


@pytest.mark.parametrize(
    ("step", "remedy"),
    [
        ({"allocate": "uniform"}, "allocate must be spectrum where the method is any-of; got 'uniform'."),
        ({"allocate": "threshold", "keep": None, "error": 0.1}, "allocate must be spectrum where the method is any-of"),
        (
            {"allocate": "spectrum", "currency": "macs"},
            "currency must be bytes where the method is any-of; got 'macs'.",
        ),
        ({"allocate": "spectrum", "keep": None}, "The method 'any-of' needs a size: give keep"),
    ],
)
def test_it_is_refused_where_nothing_is_compared(step: dict, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        Compress(**{"method": AnyOf(), "keep": 0.2, **step})


def test_too_few_rows_are_refused(ground: Ground) -> None:
    step = Compress(method=AnyOf(methods=(FEW_BITS, Svd())), keep=0.2, allocate="spectrum")
    few = Calibration([{name: tensor[:3] for name, tensor in ground.data.batches[0].items()}])
    with pytest.raises(UserError, match="at least four calibration rows"):
        step.apply_with(ground.lm.shallow_copy(), ground.stats, few)


def test_a_method_that_no_fraction_suits_is_an_error(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def refuse(request: object, method: object, keep: object) -> None:
        tried.append(keep)
        raise UserError("The method has no such size.")

    monkeypatch.setattr(several_methods, "equal_fractions", refuse)
    with pytest.raises(UserError, match="no such size"):
        solved(ground, AnyOf(methods=(FEW_BITS, Svd())), 0.3)
    assert tried == [0.3, 0.6, 1.0]


def test_a_streamed_model_is_refused(ground: Ground) -> None:
    step = Compress(method=AnyOf(), keep=0.2, allocate="spectrum")
    assert "compares copies of the whole model" in str(step.stream_obstacle(ground.lm))


def test_methods_that_cannot_be_compared_are_refused() -> None:
    for methods, reason in (
        ((Rtn(),), "at least two methods"),
        ((Rtn(), Rtn()), "methods that differ"),
        ((Rtn(bits=4), Svd()), "'rtn' must have no size"),
        ((Rtn(grid=("q4_0", "q8_0")), Svd()), "'rtn' must have no grid"),
    ):
        with pytest.raises(UserError, match=reason):
            AnyOf(methods=methods)


def test_an_earlier_method_is_used_where_it_is_small_enough() -> None:
    method = AnyOf(methods=(Rtn(), Svd(multiple=1)))
    assert method.with_keep(0.5, (64, 64)).name == "rtn"
    assert method.with_keep(0.05, (64, 64)).name == "svd"
    # Neither of them is, so the smaller one is used.
    assert method.with_keep(1e-6, (64, 64)) == Svd(multiple=1, rank=1)
