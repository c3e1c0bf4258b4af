"""Pruned layers: later steps find them by their names, and keep their zeros or are refused."""

import pytest
import torch

from laconic.calibrate import Calibration, InputCovariance, SequentialConfig, collect_stats, sequential_calibrate
from laconic.calibrate.passes import DEFAULT_WORKLOAD, profile
from laconic.compress import Compress, ShrinkHeads
from laconic.errors import UserError
from laconic.formats import LowRank, Sparse, SparseEmbedding
from laconic.methods import METHODS, Magnitude, Svd, Wanda
from laconic.model import LanguageModel
from laconic.report.inspection.parts import measure_parts
from tests.architectures import ARCHITECTURES, BY_NAME, factors, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.store.test_pruned import pruned


def data_for(lm: LanguageModel) -> Calibration:
    return Calibration(labelled_batches(lm, 4))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_a_pruned_layer_is_the_site_that_it_was(architecture) -> None:
    lm, dense = architecture.lm(), architecture.lm()
    pruned(lm, ("*",))
    for site, before in zip(lm.sites(("*",)), dense.sites(("*",)), strict=True):
        assert (site.name, site.group, site.role, site.input, site.block) == (
            before.name, before.group, before.role, before.input, before.block,
        )  # fmt: skip
        assert isinstance(site.module, (Sparse, SparseEmbedding))
        assert site.shape == before.shape
        assert site.is_lookup == before.is_lookup
        assert site.support is not None
        torch.testing.assert_close(site.weight(), torch.where(site.support, before.weight(), 0), rtol=0, atol=0)
        assert (site.bias() is None) == (before.bias() is None)


@pytest.mark.parametrize("name", ["bert-masked", "gpt2", "t5", "bart-scaled", "albert-masked"])
def test_a_later_step_replaces_the_whole_of_it(name: str) -> None:
    lm, dense = pruned(BY_NAME[name].lm(), ("*",)), BY_NAME[name].lm()
    for site in dense.sites(("*",)):
        dense.replace(site, LowRank.from_factors(*exact(site.weight())))
    for site, before in zip(lm.sites(("*",)), BY_NAME[name].lm().sites(("*",)), strict=True):
        lm.replace(site, LowRank.from_factors(*exact(before.weight())))
    assert torch.equal(outputs(lm.model), outputs(dense.model))
    assert not any(isinstance(module, (Sparse, SparseEmbedding)) for module in lm.model.modules())


def exact(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return weight.contiguous(), torch.eye(weight.shape[1])


def test_bytes_are_those_of_the_file() -> None:
    lm = BY_NAME["bert-masked"].lm()
    dense = lm.stored_nbytes(lm.sites(("blocks",)))
    half = pruned(lm, ("blocks",)).with_dtype(torch.float16)
    for site in half.sites(("blocks",)):
        assert isinstance(site.module, Sparse)
        # In memory it is float32; half of the weights, and a bit for each of them.
        expected = site.module.kept * 2 + -(-site.shape[0] * site.shape[1] // 8)
        assert half.stored_nbytes([site]) == {site.name: expected}
        assert expected < dense[site.name]


def test_everything_that_measures_knows_the_zeros() -> None:
    lm = pruned(BY_NAME["bert-classifier"].lm(), ("ffn",))
    sites, data = lm.sites(("ffn", "attention")), data_for(lm)
    supports = {site.name: site.support for site in sites}
    for known in (collect_stats(lm, data, {InputCovariance}, sites), collect_stats(lm, data, (), sites)):
        assert all(known[name].support is support for name, support in supports.items())
    for course in (SequentialConfig(), SequentialConfig(anchored=True)):
        walked = [pair for step in sequential_calibrate(lm, data, {InputCovariance}, sites, course) for pair in step]
        assert len(walked) == len(sites)
        assert all(problem.stats.support is supports[site.name] for site, problem in walked)
    assert all(0 < use.share < 1 for use in profile(lm, sites, DEFAULT_WORKLOAD).layers.values())


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        (Magnitude(sparsity=0.7), {}),
        (Magnitude(sparsity=0.7), {"anchored": True}),
        (Wanda(sparsity=0.7, within="matrix"), {}),
        (Wanda(sparsity=0.7, within="matrix"), {"sequential": True}),
        (Wanda(sparsity=0.7, within="matrix"), {"anchored": True}),
    ],
)
def test_zeros_stay_under_a_second_pruning(method, extra, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    # The second time what was worked out before is recalled.
    for _ in range(2):
        lm = pruned(BY_NAME["bert-classifier"].lm(), ("blocks",))
        before = {site.name: site.support for site in lm.sites(("blocks",))}
        biases = {site.name: site.bias() is None for site in lm.sites(("blocks",))}
        Compress(method=method, targets=("blocks",), **extra).apply(lm, data_for(lm))
        for site in lm.sites(("blocks",)):
            support = before[site.name]
            assert support is not None and site.support is not None
            assert not (site.support & ~support).any()
            assert int((~site.support).sum()) == round(0.7 * support.numel())
            assert (site.bias() is None) == biases[site.name]


def test_statistics_of_a_pruned_model_leave_the_zeros_behind_on_a_dense_one() -> None:
    architecture = BY_NAME["bert-classifier"]
    lm, dense = pruned(architecture.lm(), ("ffn", "attention")), architecture.lm()
    known = collect_stats(lm, data_for(lm), {InputCovariance}, lm.sites())
    Compress(method=Wanda(sparsity=0.2)).apply_with(dense, known)
    for site in dense.sites():
        assert site.support is not None
        assert int((~site.support).sum()) == site.shape[0] * round(0.2 * site.shape[1])


def test_what_would_fill_the_zeros_is_refused_before_any_work() -> None:
    lm = pruned(BY_NAME["bert-classifier"].lm(), ("ffn",))
    before = outputs(lm.model)
    sentence = r"The layer '.*intermediate.dense' is pruned, and 'svd' would fill its zeros; prune after 'svd'"
    with pytest.raises(UserError, match=sentence):
        Compress(method=Svd(), keep=0.5).check(lm)
    with pytest.raises(UserError, match=sentence):
        Compress(method=Svd(), keep=0.5).apply(lm, None)
    plan = {lm.sites(("ffn",))[0].name: Svd(rank=2)}
    with pytest.raises(UserError, match=sentence):
        Compress(method=Svd(), plan=plan).check(lm)
    assert torch.equal(outputs(lm.model), before)
    Compress(method=Svd(), keep=0.5, targets=("attention",)).apply(lm, None)
    # The other way round both stand.
    factored = [site for site in lm.sites(("attention",)) if site.name.endswith(".left")]
    assert factored
    Compress(method=Magnitude(sparsity=0.5), targets=("attention",)).apply(lm, None)
    assert all(site.support is not None for site in lm.sites(("blocks",)))


def test_heads_of_a_pruned_attention_do_not_shrink() -> None:
    lm = pruned(BY_NAME["bert-classifier"].lm(), ("attention",))
    with pytest.raises(UserError, match="its heads must shrink before that"):
        ShrinkHeads(size=4).check(lm)


def test_input_factors_keep_no_zeros() -> None:
    assert not any(method.keeps_support for method in METHODS if method.shares_inputs)


@pytest.mark.parametrize("name", ["bert-masked", "gpt2", "bart-scaled", "llama-tied"])
def test_the_parts_show_zeros_beside_bytes(name: str) -> None:
    lm = BY_NAME[name].lm()
    dense = measure_parts(lm)
    seen = measure_parts(pruned(lm, ("blocks",)))
    assert sum(part.parameters for part in seen.parts) == seen.parameters == lm.size()[0]
    assert sum(part.nbytes for part in seen.parts) == seen.nbytes == lm.size()[1]
    for part, before in zip(seen.parts, dense.parts, strict=True):
        if part.name in ("attention", "ffn"):
            assert before.sparsity == 0
            assert part.sparsity == pytest.approx(0.5, abs=0.1)
            assert part.nbytes / before.nbytes == pytest.approx(1 - part.sparsity + 1 / 32, abs=0.01)
            assert part.parameters / before.parameters == pytest.approx(1 - part.sparsity)
        else:
            assert (part.parameters, part.nbytes) == (before.parameters, before.nbytes)
    assert all(0.4 < matrix.sparsity < 0.6 for matrix in seen.sites if matrix.group == "ffn")


def test_a_factor_that_is_pruned_is_pruned_again() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    for site in lm.sites(("ffn",)):
        lm.replace(site, factors(site, rank=8))
    Compress(method=Magnitude(sparsity=0.3), targets=("ffn",)).apply(lm, None)
    first = {site.name: site.support for site in lm.sites(("ffn",))}
    Compress(method=Magnitude(sparsity=0.6), targets=("ffn",)).apply(lm, None)
    for site in lm.sites(("ffn",)):
        assert site.name.endswith((".left", ".right"))
        support = first[site.name]
        assert support is not None and site.support is not None
        assert not (site.support & ~support).any()
