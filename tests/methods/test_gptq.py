"""GPTQ and YAQA as methods: zeros that stay, zeros that they put in, sizes, and mistakes."""

from dataclasses import replace

import pytest
import torch

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.errors import UserError
from laconic.formats import Quantized
from laconic.methods import METHODS, Gptq, Rtn, Yaqa
from laconic.methods.quantize.base import QuantizationMethod
from laconic.methods.quantize.gptq import FeedbackQuantization
from laconic.numerics.masks import keep_in_matrix
from laconic.numerics.moments import quadratic_loss
from tests.matrices import Case, case, stats_of

BOTH = pytest.mark.parametrize("method", [Gptq(bits=3, group_size=16), Yaqa(bits=3, group_size=16)], ids=repr)
QUANTIZERS = [method for method in METHODS if issubclass(method, QuantizationMethod)]


def pruned(matrix: Case, sparsity: float = 0.5) -> Case:
    """The same after an earlier step chose zeros."""
    mask = keep_in_matrix(matrix.weight.abs(), sparsity)
    return Case(matrix.name, matrix.weight * mask, LayerStats(matrix.stats, mask))


def loss(matrix: Case, method: QuantizationMethod) -> float:
    error = matrix.weight.double() - method.compress(matrix.weight, matrix.stats).dense().double()
    return quadratic_loss(error, matrix.stats[GradCovariance].matrix, matrix.stats[InputCovariance].matrix)


@pytest.mark.parametrize("kind", QUANTIZERS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [16, "channel", "tensor"])
def test_no_quantizer_fills_a_zero_that_was_chosen(
    kind: type[QuantizationMethod], bits: int, group_size: int | str
) -> None:
    matrix = pruned(case("zeros", (24, 40)))
    fields = {"bits": bits, "group_size": group_size}
    method = kind(**{name: value for name, value in fields.items() if name in kind.__dataclass_fields__})
    if not method.has_size:
        method = method.with_keep(1.0, (24, 40))
    mask = matrix.stats.support
    assert mask is not None
    result = method.compress(matrix.weight, matrix.stats)
    assert not result.dense()[~mask].any()
    assert result.support is not None
    assert torch.equal(result.support, mask)


def correlated() -> Case:
    """Inputs, and gradients, of which each tells much of the others."""
    matrix = case("correlated", (48, 64))
    generator = torch.Generator().manual_seed(3)
    x, g = (torch.randn(400, n, generator=generator) + 2 * torch.randn(400, 1, generator=generator) for n in (64, 48))
    mixing = torch.randn(64, 64, generator=generator) / 8
    return Case(matrix.name, matrix.weight, stats_of(x @ mixing, g))


def test_on_what_was_pruned_feedback_beats_nearest_and_two_sides_beat_one() -> None:
    matrix = pruned(correlated())
    nearest, one, two = (loss(matrix, kind(bits=3, group_size=16)) for kind in (Rtn, Gptq, Yaqa))
    assert one < 0.85 * nearest
    assert two < 0.8 * one


@BOTH
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_counts_of_zeros_are_exact_and_so_are_the_bytes(method: FeedbackQuantization, sparsity: float) -> None:
    matrix = case("counted", (24, 40))
    both = replace(method, sparsity=sparsity)
    result = both.compress(matrix.weight, matrix.stats)
    assert isinstance(result, Quantized)
    assert result.support is not None
    assert int((~result.support).sum()) == round(sparsity * 960)
    assert not result.dense()[~result.support].any()
    assert result.nbytes() == both.with_bits(3).nbytes_for((24, 40), torch.float32)


@BOTH
def test_patterns_hold_in_every_group(method: FeedbackQuantization) -> None:
    matrix = case("pattern", (24, 40))
    both = replace(method, pattern="2:4")
    result = both.compress(matrix.weight, matrix.stats)
    assert result.support is not None
    assert (result.support.view(-1, 4).sum(1) == 2).all()
    assert result.nbytes() == both.with_bits(3).nbytes_for((24, 40), torch.float32)


@BOTH
def test_zeros_of_an_earlier_step_count(method: FeedbackQuantization) -> None:
    matrix = pruned(case("earlier", (24, 40)), 0.3)
    before = matrix.stats.support
    result = replace(method, sparsity=0.5).compress(matrix.weight, matrix.stats)
    assert before is not None
    assert result.support is not None
    assert int((~result.support).sum()) == 480
    assert not (result.support & ~before).any()


@BOTH
def test_zeros_and_rounding_are_made_up_for_together(method: FeedbackQuantization) -> None:
    """Less is lost than by the same mask and rounding, with no weight moved for the zeros."""
    matrix = correlated()
    both = replace(method, sparsity=0.5)
    mask = both.compress(matrix.weight, matrix.stats).support
    assert mask is not None
    cut = method.compress(matrix.weight * mask, LayerStats(matrix.stats, mask)).dense().double()
    F, C = matrix.stats[GradCovariance].matrix, matrix.stats[InputCovariance].matrix
    assert loss(matrix, both) < 0.8 * quadratic_loss(matrix.weight.double() - cut, F, C)


@BOTH
def test_sparsity_is_no_size(method: FeedbackQuantization) -> None:
    shape, unsized = (24, 40), replace(method, bits=None, sparsity=0.5)
    assert not unsized.has_size
    sized = unsized.with_keep(0.15, shape)
    assert isinstance(sized, FeedbackQuantization)
    assert sized.bits is not None
    assert sized.sparsity == 0.5
    assert (
        sized.with_bits(sized.bits).nbytes_for(shape, torch.float32)
        <= 0.15 * 960 * 4
        < sized.with_bits(sized.bits + 1).nbytes_for(shape, torch.float32)
    )
    matrix = case("sparse ladder", shape)
    candidates = unsized.candidates(matrix.weight, matrix.stats).all
    assert [candidate.parameters for candidate in candidates] == [480] * 7 + [960]
    for candidate in candidates[:-1:3]:
        assert isinstance(candidate.method, FeedbackQuantization)
        assert candidate.loss == pytest.approx(loss(matrix, candidate.method), rel=1e-3)
        assert candidate.nbytes == candidate.method.compress(matrix.weight, matrix.stats).nbytes()


@pytest.mark.parametrize("kind", [Gptq, Yaqa])
def test_an_embedding_and_a_wide_head(kind: type[FeedbackQuantization]) -> None:
    """The moment of one-hot inputs is diagonal, and so is that of more outputs than fit."""
    matrix = case("full", (24, 40))
    F, C = matrix.stats[GradCovariance], matrix.stats[InputCovariance]
    thin_F = GradCovariance.from_total(F.total.diagonal().clone(), F.count)
    thin_C = InputCovariance.from_total(C.total.diagonal().clone(), C.count)
    for stats in (LayerStats([thin_C, F]), LayerStats([C, thin_F]), LayerStats([thin_C, thin_F])):
        here = Case("thin", matrix.weight, stats)
        result = loss(here, kind(bits=3, group_size=16))
        nearest = loss(here, Rtn(bits=3, group_size=16))
        feeds = stats[InputCovariance].matrix.ndim == 2 or (kind is Yaqa and stats[GradCovariance].matrix.ndim == 2)
        assert result < nearest if feeds else result == nearest
        assert kind(bits=3, sparsity=0.5).compress(here.weight, stats).support is not None


def test_gptq_asks_for_no_gradients_even_where_it_prunes() -> None:
    matrix = case("inputs alone", (24, 40))
    stats = LayerStats([matrix.stats[InputCovariance]])
    assert Gptq(bits=4, sparsity=0.5).compress(matrix.weight, stats).support is not None
    assert Gptq(bits=4, act_order=False).compress(matrix.weight, stats).dense().isfinite().all()


@BOTH
def test_mistakes_are_one_sentence(method: FeedbackQuantization) -> None:
    for changed, sentence in (
        ({"sparsity": 1.0}, f"{method.name}.sparsity must be in"),
        ({"pattern": "4:2"}, f"{method.name}.pattern must be N:M"),
        ({"pattern": "2:4", "sparsity": 0.5}, f"{method.name} takes either sparsity or pattern"),
        ({"damping": 0.0}, f"{method.name}.damping must be in"),
    ):
        with pytest.raises(UserError, match=sentence):
            replace(method, **changed)
    matrix = case("odd", (24, 40))
    with pytest.raises(UserError, match=f"{method.name}.pattern must be N:M with an M that divides"):
        replace(method, pattern="2:7").compress(matrix.weight, matrix.stats)
    with pytest.raises(UserError, match=f"{method.name} cannot"):
        method.compress(torch.full((24, 40), torch.nan), matrix.stats)


def test_shrink_is_a_fraction() -> None:
    with pytest.raises(UserError, match=r"yaqa\.shrink must be in"):
        Yaqa(shrink=0.0)
