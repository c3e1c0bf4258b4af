"""Steps after a step that quantizes; pruned weights stay zero in codes."""

import pytest
import torch

from laconic.calibrate import GradCovariance, InputCovariance
from laconic.compress import Compress, Narrow, Shorten, ShrinkHeads
from laconic.errors import UserError
from laconic.formats import PackedCodes, Sparse
from laconic.methods import METHODS, Gptq, KfacSvd, Magnitude, Plus, Rtn, SparseGpt, Wanda
from laconic.methods.quantize.base import QuantizationMethod
from tests.architectures import BY_NAME, outputs
from tests.compress.test_zeros import data_for
from tests.matrices import case

QUANTIZERS = [method for method in METHODS if issubclass(method, QuantizationMethod)]


@pytest.mark.parametrize("method", QUANTIZERS, ids=lambda method: method.name)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_quantizer_fills_a_zero_that_was_chosen(method: type[QuantizationMethod], bits: int) -> None:
    matrix = case("pruned", (24, 40))
    for pruner in (Magnitude(sparsity=0.5), Wanda(pattern="2:4"), SparseGpt(sparsity=0.9)):
        pruned = pruner.compress(matrix.weight, matrix.stats)
        stats = type(matrix.stats)(matrix.stats, pruned.support)
        result = method(bits=bits).compress(pruned.dense(), stats)
        assert result.support is not None
        assert torch.equal(result.support, pruned.support)
        assert not result.dense()[~result.support].any()
        error = (pruned.dense() - result.dense()).norm() / pruned.dense().norm()
        assert error < {2: 1.0, 4: 0.35, 8: 0.05}[bits]


@pytest.mark.parametrize("method", QUANTIZERS, ids=lambda method: method.name)
def test_nor_in_a_model(method: type[QuantizationMethod]) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    data = data_for(lm)
    Compress(method=Wanda(sparsity=0.5)).apply(lm, data)
    masks = {site.name: site.support for site in lm.sites(("blocks",))}
    Compress(method=method(bits=4, group_size="channel")).apply(lm, data)
    for site in lm.sites(("blocks",)):
        assert isinstance(site.module, PackedCodes)
        assert torch.equal(site.support, masks[site.name])
        assert not site.weight()[~masks[site.name]].any()


def test_a_pruned_matrix_stays_where_codes_are_no_smaller() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    data = data_for(lm)
    Compress(method=Wanda(sparsity=0.9)).apply(lm, data)
    before = lm.stored_nbytes(lm.sites())
    # A scale for each two weights takes more than the few numbers that are left.
    outcome = Compress(method=Rtn(bits=8, group_size=2)).apply(lm, data)
    assert not any(outcome.plan.values()) and lm.stored_nbytes(lm.sites()) == before
    structure = BY_NAME["bert-classifier"].lm().to_meta()
    for step in (Compress(method=Wanda(sparsity=0.9)), Compress(method=Rtn(bits=8, group_size=2))):
        structure = step.dry_run(structure) or structure
    assert all(isinstance(site.module, Sparse) for site in structure.sites())
    Compress(method=Rtn(bits=4, group_size="channel")).apply(lm, data)
    assert all(after < before[name] for name, after in lm.stored_nbytes(lm.sites()).items())


BEFORE = (
    Compress(method=KfacSvd(multiple=1), keep=0.6),
    Compress(method=Magnitude(sparsity=0.5)),
    Narrow(heads=0.5, channels=0.5),
    Shorten(drop=1),
)


# Factors of a low rank are narrower than these groups, and that is said.
@pytest.mark.filterwarnings("ignore:group_size 16 is more than:laconic.errors.Notice")
@pytest.mark.parametrize("first", BEFORE, ids=lambda step: step.name)
@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "llama"])
def test_quantizing_follows_every_family(first, name: str) -> None:
    lm = BY_NAME[name].lm()
    data = data_for(lm)
    first.apply(lm, data)
    before, plain = outputs(lm.model), lm.size()[1]
    last = Compress(method=Rtn(bits=8, group_size=16))
    last.check(lm)
    last.apply(lm, data)
    assert all(isinstance(site.module, PackedCodes) for site in lm.sites(("attention", "ffn")))
    assert (outputs(lm.model) - before).norm() < 0.05 * before.norm()
    assert lm.size()[1] < plain


@pytest.mark.parametrize(
    "second",
    [Compress(method=Magnitude(sparsity=0.5)), Compress(method=Rtn(bits=4)), Narrow(heads=0.5), ShrinkHeads(keep=0.5)],
)
def test_what_comes_after_codes_is_refused_by_name(second) -> None:
    lm = BY_NAME["bert-classifier"].lm()
    Compress(method=Rtn(bits=8)).apply(lm, None)
    expected = outputs(lm.model)
    with pytest.raises(UserError, match="already"):
        second.check(lm)
    assert torch.equal(outputs(lm.model), expected)


def test_a_pattern_that_divides_no_matrix_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"bert\.encoder\.layer\.0\.attention\.self\.query"):
        Compress(method=Gptq(bits=4, pattern="3:7")).check(BY_NAME["bert-classifier"].lm())


def test_whole_blocks_of_codes_may_go() -> None:
    lm = BY_NAME["gpt2"].lm()
    Compress(method=Rtn(bits=8)).apply(lm, None)
    Shorten(drop=1, select="last").apply(lm, data_for(lm))
    assert torch.isfinite(outputs(lm.model)).all()


def test_average_bits_are_spent_where_the_loss_falls_most() -> None:
    lm, even = BY_NAME["bert-classifier"].lm(), BY_NAME["bert-classifier"].lm()
    data = data_for(lm)
    method = Rtn(group_size=16, symmetric=True)
    # 16-bit scales of groups of 16 are a bit a weight: 3.5 bits of codes on average.
    mixed = Compress(method=method, keep=4.5 / 32, allocate="spectrum").apply(lm, data)
    chosen = {line.bits for line in mixed.plan.values() if isinstance(line, Rtn)}
    assert len(chosen) > 1
    assert mixed.nbytes <= 4.5 / 32 * mixed.dense_nbytes
    uniform = Compress(method=method, keep=4.5 / 32).apply(even, data)
    assert {line.bits for line in uniform.plan.values() if isinstance(line, Rtn)} == {3}


def test_a_sum_is_put_in_place_and_its_factors_count() -> None:
    lm = BY_NAME["llama"].lm()
    data = data_for(lm)
    outcome = Compress(method=Plus(base=Rtn(bits=3, group_size=16)), keep=0.3).apply(lm, data)
    assert outcome.nbytes <= 0.3 * outcome.dense_nbytes
    assert torch.isfinite(outputs(lm.model)).all()
    assert {InputCovariance, GradCovariance} <= Plus().required_statistics
