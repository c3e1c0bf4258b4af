"""Notices about experts with few tokens, and statistics that are left as they are."""

import warnings

import pytest
import torch

from benchmarks import few_tokens
from laconic import processes
from laconic.calibrate import (
    AbsMax,
    Calibration,
    Fisher,
    GradCovariance,
    InputCovariance,
    LayerStats,
    SequentialConfig,
    collect_stats,
    sequential_calibrate,
)
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.starved import shrink_starved
from laconic.compress import Compress
from laconic.errors import Notice
from laconic.methods import Gptq, KfacSvd
from laconic.model import LanguageModel
from tests.calibrate.test_experts import KINDS, PATH, ByHand, batches, texts, tiny, value

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")

FEW = Calibration(batches(texts(4), 2), labels="data")


def tokens_of(stats: dict[str, LayerStats]) -> set[int]:
    return {of.token_count for of in stats.values() if of.token_count is not None}


def test_mixed_gradients_are_named_too():
    """The first matrix of an expert has more rows than columns, and its gradients are measured over its rows."""
    lm = tiny("mixtral")
    sites = lm.sites((f"{PATH}.gate_up_proj.*",))
    rows, columns = sites[0].shape
    data = Calibration(batches(texts(12), 6), labels="data")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        tokens = tokens_of(collect_stats(lm, data, {InputCovariance, Fisher}, sites))
    assert columns <= min(tokens) and max(tokens) < rows
    sentence = rf"4 of 4 experts of .* the {rows} rows or columns of their matrices \(the fewest {min(tokens)}\)"
    with pytest.warns(Notice, match=sentence):
        collect_stats(lm, data, {GradCovariance}, sites)


@pytest.mark.parametrize("refresh", [None, 1])
def test_a_pass_block_by_block_gives_one_notice(refresh):
    lm = tiny("mixtral")
    config = SequentialConfig(refresh=refresh)
    with pytest.warns(Notice) as given:
        list(sequential_calibrate(lm, FEW, set(KINDS), lm.sites(("experts",)), config))
    (notice,) = given
    assert "and experts of 1 other layer too" in str(notice.message)


def test_statistics_for_a_plan_and_those_of_its_blocks_give_one_notice():
    lm = tiny("mixtral")
    step = Compress(method=KfacSvd(multiple=1), keep=0.5, allocate="spectrum", sequential=True, targets=("experts",))
    with pytest.warns(Notice) as given:
        step.apply(lm, FEW)
    assert len([notice for notice in given if "saw fewer tokens" in str(notice.message)]) == 1


def test_only_the_first_process_gives_a_notice(monkeypatch):
    lm = tiny("mixtral")
    monkeypatch.setattr(processes, "is_rank_zero", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect_stats(lm, FEW, {InputCovariance}, lm.sites(("experts",)))


def test_statistics_are_left_as_they_are_if_asked():
    lm, rows = tiny("mixtral"), texts(4)
    by_hand = ByHand(lm)
    for text in rows:
        by_hand.add(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = collect_stats(lm, FEW, set(KINDS), lm.sites((f"{PATH}.*",)), shrink_starved=False)
    assert min(tokens_of(own)) < lm.sites((f"{PATH}.*",))[0].shape[1]
    for key, stats in own.items():
        for kind in KINDS if by_hand.tokens[key] else ():
            expected = by_hand.value(key, kind)
            torch.testing.assert_close(value(stats, kind), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_the_benchmark_measures_both_ways(monkeypatch):
    lm = tiny("mixtral")
    monkeypatch.setattr(few_tokens, "METHODS", {"gptq": (Gptq(bits=3), None)})
    with pytest.warns(Notice):
        shrunk = few_tokens.measure(lm, FEW, "shrunk")
    own = few_tokens.measure(lm, FEW, "own")
    assert shrunk.keys() == own.keys()
    for site in lm.sites(("experts",)):
        one, other = (value(stats[site.name], InputCovariance) for stats in (shrunk, own))
        assert torch.equal(one, other) == ((own[site.name].token_count or 0) >= site.shape[1])


def failing(lm: LanguageModel) -> Recorder:
    """A recorder of a layer whose experts fail when they run once more on a sample."""
    with Recorder(lm, lm.sites((f"{PATH}.*",)), {AbsMax}) as recorder, torch.no_grad():
        recorder.start(FEW.batches[0])
        lm.model(**FEW.batches[0])
    (layer,) = recorder.experts
    layer.layer.activate = lambda inner: 1 / 0
    return recorder


def test_a_failure_leaves_no_hook():
    recorder = failing(tiny("mixtral"))
    (layer,) = recorder.experts
    with pytest.raises(ZeroDivisionError):
        shrink_starved(layer)
    assert not any(stack._forward_pre_hooks for stack in layer.layer.stacks().values())
