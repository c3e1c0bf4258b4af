"""The checks that are shipped for others notice what is wrong, and say it."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.compress import Narrow, ShrinkHeads
from laconic.formats import FORMATS, Format, LowRank
from laconic.methods import METHODS, Svd
from laconic.model import LanguageModel
from laconic.testing import (
    FORMAT_CHECKS,
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
