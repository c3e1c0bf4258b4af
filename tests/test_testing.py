"""The checks that are shipped for others notice what is wrong, and say it."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import STATISTICS, AbsMean, InputCovariance, InputStatistic, LayerStats
from laconic.compress import Narrow, ShrinkHeads
from laconic.errors import UserError
from laconic.formats import FORMATS, Format, LowRank
from laconic.methods import METHODS, Svd
from laconic.model import LanguageModel
from laconic.numerics.lowrank import Components
from laconic.testing import (
    FORMAT_CHECKS,
    MATRICES,
    check_architecture,
    check_format,
    check_method,
    check_step,
    random_matrix,
    randomize,
)
from tests.architectures import BY_NAME


@dataclass(frozen=True, kw_only=True)
class Wrong(Svd):
    """An SVD with one mistake."""

    name = "wrong"
    mistake: str = ""

    def compress(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> LowRank:
        if self.mistake == "changes its input":
            weight *= 2
        made = super().compress(weight, stats)
        if self.mistake == "is random":
            made.left.weight.data += torch.rand(())
        if self.mistake == "is NaN":
            made.left.weight.data[0, 0] = float("nan")
        if self.mistake == "is too large":
            return super(Wrong, self.with_rank(12)).compress(weight, stats)  # type: ignore[misc]
        return made


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("changes its input", "'wrong' changes the matrix that it is given"),
        ("is random", "'wrong' gives two results for one matrix"),
        ("is NaN", r"'wrong' at keep 0.7 \(wide\) gives NaN or infinity"),
        ("is too large", r"'wrong' at keep 0.7 \(wide\) takes \d+ bytes"),
    ],
)
def test_a_mistake_of_a_method_is_noticed(mistake: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_method(Wrong(multiple=1, mistake=mistake))


@dataclass(frozen=True, kw_only=True)
class Forgetful(Svd):
    """An SVD that reads a statistic which is not in `needs`."""

    name = "forgetful"
    reads: ClassVar[type[InputStatistic]] = AbsMean

    def components(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Components:
        assert stats[self.reads].count >= 0
        return super().components(weight, stats)


def test_a_statistic_that_is_missing_from_needs_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"^'forgetful' fails .* 'AbsMean' was not collected .* in `needs`"):
        check_method(Forgetful(multiple=1))


class Largest(InputStatistic):
    """max |x| of each input, as a plug-in may define it."""

    @classmethod
    def empty(cls, in_features: int, lookup: bool, device: torch.device) -> "Largest":
        return cls(torch.zeros(in_features, dtype=torch.float64, device=device))

    def update(self, x: Tensor) -> None:
        self.count += len(x)
        self.total = torch.maximum(self.total, x.abs().amax(0).double())


@dataclass(frozen=True, kw_only=True)
class WithOwnStatistic(Forgetful):
    """An SVD that needs a statistic of its own."""

    name, needs, reads = "with-own-statistic", frozenset({Largest}), Largest


def test_a_method_may_need_a_statistic_of_its_own() -> None:
    check_method(WithOwnStatistic(multiple=1))


class Undecorated(Svd):
    """A method without the decorator of a dataclass."""

    name = "undecorated"


def test_a_class_without_the_decorator_is_noticed() -> None:
    with pytest.raises(AssertionError, match="Undecorated is no frozen dataclass"):
        check_method(Undecorated(multiple=1))


def test_the_matrices_have_every_statistic() -> None:
    assert all({type(statistic) for statistic in matrix.stats} == set(STATISTICS) for matrix in MATRICES)


def test_a_statistic_that_was_not_collected_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^The statistic 'InputCovariance' was not collected .* in `needs`\.$"):
        LayerStats()[InputCovariance]


def made_by_methods() -> list[Format]:
    """One layer of each format that methods make, with a bias."""
    found: dict[str, Format] = {}
    matrix = random_matrix("", (24, 40))
    for kind in METHODS:
        method: Any = kind(multiple=1) if "multiple" in kind.__dataclass_fields__ else kind()
        layer = method.with_keep(0.5, (24, 40)).compress(matrix.weight, matrix.stats)
        layer.set_bias(torch.arange(24.0))
        found.setdefault(layer.kind, layer)
    return list(found.values())


@pytest.mark.parametrize("check", FORMAT_CHECKS, ids=lambda check: check.__name__)
def test_formats_keep_their_contract(check: Any) -> None:
    layers = made_by_methods()
    assert {type(layer) for layer in layers} < set(FORMATS) and len(layers) >= 6
    for layer in layers:
        check(layer)


def test_a_mistake_of_a_format_is_noticed() -> None:
    class Heavy(LowRank):
        def nbytes(self) -> int:
            return super().nbytes() + 1

    layer = LowRank.from_factors(torch.ones(6, 2), torch.ones(2, 8))
    check_format(layer)
    layer.__class__ = Heavy
    with pytest.raises(AssertionError, match=r"nbytes of 'low-rank' is 113, and it stores 112 bytes"):
        check_format(layer)


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "t5"])
def test_architectures_keep_their_contract(name: str) -> None:
    check_architecture(BY_NAME[name].model())


def test_a_wrong_entry_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BY_NAME["bert-classifier"].model()
    entry = LanguageModel.of(model).anatomy
    (stack,) = entry.stacks
    wrong = replace(entry, stacks=(replace(stack, feed_forward=()),))
    for module in ("laconic.model.anatomy.infer", "laconic.testing.models"):
        monkeypatch.setattr(f"{module}.find_entry", lambda model_type: wrong)
    with pytest.raises(AssertionError, match="no site of 'bert' is the linear layer 'intermediate"):
        check_architecture(model)


@pytest.mark.parametrize("step", [Narrow(heads=0.5), ShrinkHeads(keep=0.5)], ids=lambda step: step.name)
def test_steps_keep_their_contract(step: Any) -> None:
    check_step(step, randomize(BY_NAME["bert-classifier"].build()))
