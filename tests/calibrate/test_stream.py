"""A model run block by block: what enters its blocks, how often they run, and what is kept meanwhile."""

import gc
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from laconic.calibrate import (
    Calibration,
    GradCovariance,
    InputCovariance,
    SequentialConfig,
    collect_stats,
    sequential_calibrate,
)
from laconic.calibrate.block_calls import BlocksToRun, blocks_to_run, capture_inputs
from laconic.calibrate.stream import Stream
from laconic.compress import Compress
from laconic.formats import Quantized
from laconic.methods import Gptq, SparseGpt, Wanda
from laconic.model import LanguageModel
from tests.architectures import ARCHITECTURES, BY_NAME, factors
from tests.calibrate.test_collect_stats import labelled_batches

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
BATCHES = 5


def blocks_of(lm: LanguageModel, stack: int = 0) -> list[nn.Module]:
    return [block for _, block in list(lm.stacks())[stack][1]]


@every_architecture
def test_blocks_that_stand_aside_are_called_as_they_really_are(architecture) -> None:
    lm = architecture.lm()
    (batch,) = labelled_batches(lm, 1)
    for stack, blocks in lm.stacks():
        modules = [block for _, block in blocks]
        needed = blocks_to_run(lm, modules, batch)
        if needed is None:
            assert lm.model.config.model_type == "albert"
            continue
        # Position biases and embeddings that the first block makes, in T5 and DeBERTa; GPT-Neo returns two things.
        assert (needed.count == 1) == (lm.model.config.model_type in ("t5", "deberta", "deberta-v2", "gpt_neo"))
        hidden, calls = capture_inputs(lm, modules, batch, needed)
        entered, really = capture_inputs(lm, modules, batch, BlocksToRun(len(modules), None))
        assert torch.equal(hidden, entered)
        for call, other in zip(calls, really, strict=True):
            assert call.kwargs.keys() == other.kwargs.keys()
            mine, others = ((*one.args, *one.kwargs.values()) for one in (call, other))
            for one, another in zip(mine, others, strict=True):
                assert torch.equal(one, another) if isinstance(one, torch.Tensor) else type(one) is type(another)
        assert not any("forward" in block.__dict__ for block in modules), stack.blocks
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_arguments_that_come_of_every_block_make_all_of_them_run() -> None:
    lm = BY_NAME["llama"].lm()
    blocks = nn.ModuleList([*blocks_of(lm), *blocks_of(BY_NAME["llama"].lm(1))])
    lm.model.model.layers = blocks
    lm.model.config.num_hidden_layers = len(blocks)

    def tell(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "seen": args[0].sum()}

    (batch,) = labelled_batches(lm, 1)
    for block in blocks:
        block.register_forward_pre_hook(tell, with_kwargs=True)
    needed = blocks_to_run(lm, list(blocks), batch)
    assert needed is not None and needed.count == len(blocks)
    _, calls = capture_inputs(lm, list(blocks), batch, needed)
    assert len({call.kwargs["seen"].item() for call in calls}) == len(blocks)


def test_blocks_that_do_not_follow_each_other_are_no_chain() -> None:
    lm = BY_NAME["gpt2"].lm()
    (batch,) = labelled_batches(lm, 1)
    first, second = blocks_of(lm)
    assert blocks_to_run(lm, [second, first], batch) is None
    assert blocks_to_run(lm, [first, first], batch) is None
    first.register_forward_hook(lambda module, args, output: output * 2)
    assert blocks_to_run(lm, [first, second], batch) is not None
    second.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
    assert blocks_to_run(lm, [first, second], batch) is None


def runs_of(lm: LanguageModel, step: Compress) -> dict[str, int]:
    """Rows that each block has run on, by its path."""
    rows: Counter[str] = Counter()

    def count(path: str) -> object:
        def on_call(block: nn.Module, args: tuple, kwargs: dict) -> None:
            # One that stands aside is called and does not run.
            if "forward" not in block.__dict__:
                rows[path] += len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

        return on_call

    paths = [path for _, blocks in lm.stacks() for path, _ in blocks]
    with ExitStack() as hooks:
        for path in paths:
            block = lm.model.get_submodule(path)
            hooks.callback(block.register_forward_pre_hook(count(path), with_kwargs=True).remove)
        step.apply(lm, Calibration(labelled_batches(lm, BATCHES)))
    return {path: rows[path] for path in paths}


@pytest.mark.parametrize("name", ["llama", "bert-classifier", "gpt2", "qwen3"])
@pytest.mark.parametrize("method", [Gptq(bits=4), SparseGpt(sparsity=0.5), Wanda(sparsity=0.5)])
def test_a_block_runs_once_to_be_measured_and_once_for_what_the_next_one_reads(name, method) -> None:
    first, last = runs_of(BY_NAME[name].lm(), Compress(method=method, sequential=True)).values()
    whole = 2 * BATCHES
    # And one row of it was looked at before.
    assert (first, last) == (2 * whole + 1, whole + 1)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_an_encoder_runs_once_more_for_what_its_decoder_reads(name) -> None:
    rows = runs_of(BY_NAME[name].lm(), Compress(method=Wanda(sparsity=0.5), sequential=True))
    whole, looks = 2 * BATCHES, 4
    for path, ran in rows.items():
        # The first block of T5 makes the position bias of all.
        most = 2 + ("encoder" in path) + (name == "t5" and path.endswith("block.0"))
        assert ran <= most * whole + looks, path


def test_blocks_behind_the_last_target_do_not_run() -> None:
    lm = BY_NAME["llama"].lm()
    step = Compress(method=Wanda(sparsity=0.5), sequential=True, targets=("model.layers.0.*proj",))
    assert list(runs_of(lm, step).values()) == [2 * BATCHES + 1, 1]


@pytest.mark.parametrize("course", [{"sequential": True}, {"anchored": True}], ids=["sequential", "anchored"])
def test_a_matrix_of_codes_is_decoded_as_often_whatever_the_number_of_batches(course, monkeypatch) -> None:
    dense, decoded = Quantized.dense, []

    def counted(self: Quantized) -> torch.Tensor:
        decoded.append(self)
        return dense(self)

    monkeypatch.setattr(Quantized, "dense", counted)
    times = []
    for batches in (2, 6):
        lm = BY_NAME["llama"].lm()
        decoded.clear()
        Compress(method=Gptq(bits=4), **course).apply(lm, Calibration(labelled_batches(lm, batches)))
        times.append(len(decoded))
    assert times[0] == times[1] > 0


def test_hidden_states_are_kept_once() -> None:
    """Going on to the next block replaces those of one batch after the other."""
    lm = BY_NAME["llama"].lm()
    batches = labelled_batches(lm, 12)
    stream = Stream(lm, batches)
    blocks = blocks_of(lm)
    (_, found), *_ = lm.stacks()
    assert stream.enter([path for path, _ in found])
    alive: list[int] = []

    def count(*_: object) -> None:
        shape = (*batches[0]["input_ids"].shape, lm.model.config.hidden_size)
        alive.append(sum(type(one) is torch.Tensor and one.shape == shape for one in gc.get_objects()))

    with ExitStack() as hooks:
        hooks.callback(blocks[0].register_forward_hook(count).remove)
        stream.advance()
    assert len(alive) == len(batches)
    # What the block itself holds while it returns is the same for every batch.
    assert max(alive) - min(alive) <= 1


@pytest.mark.parametrize("name", ["llama", "bert-classifier"])
@pytest.mark.parametrize("method", [Gptq(bits=3), SparseGpt(sparsity=0.5), Wanda(sparsity=0.5)])
def test_a_model_of_one_block_is_solved_as_in_one_pass(name, method) -> None:
    made = []
    for sequential in (False, True):
        lm = BY_NAME[name].lm()
        path = next(iter(lm.stacks()))[0].blocks
        holder = lm.model.get_submodule(f"{lm.model.base_model_prefix}.{path}")
        del holder[1:]
        lm.model.config.num_hidden_layers = 1
        Compress(method=method, sequential=sequential).apply(lm, Calibration(labelled_batches(lm, BATCHES)))
        made.append(lm.model.state_dict())
    one, other = made
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@every_architecture
def test_a_walk_with_a_method_that_changes_nothing_leaves_the_model_as_it_was(architecture) -> None:
    lm, before = architecture.lm(), architecture.lm().model.state_dict()
    outcome = Compress(method=Wanda(sparsity=0.0), sequential=True).apply(lm, Calibration(labelled_batches(lm)))
    assert len(outcome.plan) == len(lm.sites())
    after = lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("name", ["gpt2", "bart", "bert-classifier"])
@pytest.mark.parametrize("refresh", [None, 1])
def test_gradients_are_those_of_the_dense_model_or_of_the_model_as_it_has_become(name, refresh) -> None:
    lm = BY_NAME[name].lm()
    data = Calibration(labelled_batches(lm), "sampled")
    sites = lm.sites()
    dense = collect_stats(lm, data, {GradCovariance}, sites)
    for step in sequential_calibrate(
        lm, data, {InputCovariance, GradCovariance}, sites, SequentialConfig(refresh=refresh)
    ):
        here = [site for site, _ in step]
        expected = dense if refresh is None else collect_stats(lm, data, {GradCovariance}, here)
        for site, problem in step:
            mine, other = problem.stats[GradCovariance].matrix, expected[site.name][GradCovariance].matrix
            assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4 * other.abs().max().item()), site.name
            lm.replace(site, factors(site, rank=3))
