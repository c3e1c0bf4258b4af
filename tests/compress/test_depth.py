"""What is dropped and what stands for it: selectors by hand and by brute force, maps that help, sentences."""

from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

from laconic.calibrate import Calibration
from laconic.calibrate.tap import Tap
from laconic.compress import Compress, Shorten
from laconic.compress.depth.cuts import Cut, every_cut
from laconic.compress.depth.gates import gated, importances
from laconic.compress.depth.judge import Judge
from laconic.compress.depth.stream import distances, influences, streams
from laconic.compress.depth.surgery import take_out
from laconic.errors import UserError
from laconic.formats import Constant, Mapped
from laconic.methods import Svd
from laconic.model import LanguageModel, Predictions, divergence, predict
from laconic.model.layers import layers_of, runs_of
from tests.architectures import BY_NAME, outputs
from tests.calibrate.test_survey import labelled_batches
from tests.model.test_depth import deep

NAMES = ["bert-classifier", "gpt2", "gemma2", "opt", "t5", "bart", "longformer-masked"]


def data_for(lm: LanguageModel, count: int = 6) -> Calibration:
    return Calibration(labelled_batches(lm, count))


def kl(lm: LanguageModel, original: LanguageModel, data: Calibration) -> float:
    with torch.no_grad():
        parts = [divergence(predict(original, b)[0], predict(lm, b)[0]) for b in data.batches]
    return torch.cat(parts).mean().item()


def hidden_states(lm: LanguageModel, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Before each block and behind the last, as transformers gives them, tokens that count only."""
    paths = layers_of(lm)[0].paths
    with Tap(lm.model, paths) as tap, torch.no_grad():
        predict(lm, batch)
    states = [*(tap.inputs[path][0] for path in paths), tap.outputs[paths[-1]][0]]
    return [state[batch["attention_mask"].bool()] for state in states]


@pytest.mark.parametrize("name", ["bert-classifier", "llama"])
def test_influence_and_angles_are_their_equations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = deep(name, monkeypatch)
    data = data_for(lm, 3)
    cuts = every_cut(lm, "blocks")
    by_hand, angles, lengths = torch.zeros(4), torch.zeros(3), []
    for batch in data.batches:
        states = hidden_states(lm, batch)
        cosines = [nn.functional.cosine_similarity(a, b, dim=-1) for a, b in pairwise(states)]
        by_hand += torch.stack([(1 - cosine).sum() for cosine in cosines])
        across = torch.stack([nn.functional.cosine_similarity(a, b, dim=-1).arccos() / torch.pi
                              for a, b in zip(states, states[2:], strict=False)])  # fmt: skip
        # The last token of each text alone, for a causal model.
        ends = batch["attention_mask"].sum(1).cumsum(0) - 1
        angles += (across[:, ends] if name == "llama" else across).sum(1)
        lengths.append((int(batch["attention_mask"].sum()), len(ends)))
    tokens, texts = (sum(column) for column in zip(*lengths, strict=True))
    row = cuts["blocks"]
    found = influences(lm, data, cuts)
    assert torch.allclose(torch.tensor([found[cut] for cut in row]), by_hand / tokens, atol=1e-5)
    turned = distances(lm, data, cuts, 2)
    expected = angles / (texts if name == "llama" else tokens)
    assert torch.allclose(torch.tensor([turned[cut] for cut in row[:3]]), expected, atol=1e-5)
    assert len(turned) == 3
    chosen = Shorten(drop=2, select="angular").apply(lm.twin(), data).dropped["blocks"]
    assert chosen == (int(expected.argmin()), int(expected.argmin()) + 1)
    least = Shorten(drop=2, select="influence").apply(lm.twin(), data).dropped["blocks"]
    assert set(least) == set(by_hand.argsort()[:2].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_sublayers_lie_between_points_of_the_stream(name: str) -> None:
    """The points before the sub-blocks of blocks are those before the blocks, and others between."""
    lm = BY_NAME[name].lm()
    batch = data_for(lm, 1).batches[0]
    blocks, parts = (streams(lm, batch, every_cut(lm, what)) for what in ("blocks", "sublayers"))
    for stack, (points, _) in blocks.items():
        within, _ = parts[stack]
        each = (len(within) - 1) // (len(points) - 1)
        assert each in (2, 3)
        assert all(torch.equal(a, b) for a, b in zip(points, within[::each], strict=True))
        assert not torch.allclose(within[1], within[0])


@pytest.mark.parametrize("parts", ["blocks", "sublayers"])
@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "bart", "albert-masked"])
def test_taylor_is_the_finite_difference(name: str, parts: str) -> None:
    if name == "albert-masked" and parts == "sublayers":
        pytest.skip("its layers share one block")
    lm = BY_NAME[name].lm()
    lm.model.double()
    enumerated = name == "bert-classifier"
    data = Calibration(labelled_batches(lm, 2), labels="enumerated" if enumerated else "data")
    cuts = [cut for row in every_cut(lm, parts).values() for cut in row]
    found = importances(lm, data, cuts)

    def values(gates: torch.Tensor, batch: dict[str, torch.Tensor]) -> Predictions:
        with gated(lm, cuts, gates), torch.no_grad():
            return predict(lm, batch)[0]

    step = 1e-5
    for number, cut in enumerate(cuts):
        total, count = 0.0, 0
        for batch in data.batches:
            gates = torch.ones(len(cuts), len(batch["input_ids"]), dtype=torch.float64)
            said = values(gates, batch)
            p = said.values.softmax(-1)
            count += len(p)
            for row in range(gates.shape[1]):
                moved = torch.zeros_like(gates)
                moved[number, row] = step
                J = (values(gates + moved, batch).values - values(gates - moved, batch).values) / (2 * step)
                if enumerated:
                    total += ((p * J * J).sum(-1) - (p * J).sum(-1).square()).sum().item()
                else:
                    assert said.labels is not None
                    total += ((p * J).sum() - J.gather(1, said.labels[:, None]).sum()).square().item()
        assert found[cut] == pytest.approx(0.5 * total / count, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("replace", ["nothing", "linear"])
def test_greedy_and_runs_find_the_best_block(replace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one block all of them are tried."""
    lm = deep("bert-classifier", monkeypatch)
    data = data_for(lm)
    found = {}
    for block in range(4):
        small = lm.twin()
        Shorten(blocks=(block,), replace=replace).apply(small, data)
        found[block] = kl(small, lm, data)
    best = min(found, key=lambda block: found[block])
    for select in ("greedy", "dp"):
        assert Shorten(drop=1, select=select, replace=replace).apply(lm.twin(), data).dropped == {"blocks": (best,)}


def test_runs_are_the_best_sum_over_all_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = deep("gpt2", monkeypatch)
    data = data_for(lm)
    judge = Judge(lm, data.batches)

    def cost(blocks: tuple[int, ...]) -> float:
        small = lm.twin()
        take_out(small, [Cut("blocks", block) for block in blocks], None, lm)
        return judge(small)

    def runs(subset: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [tuple(run) for run in runs_of(subset)]

    sums = {subset: sum(cost(run) for run in runs(subset)) for subset in combinations(range(4), 2)}
    best = min(sums, key=lambda subset: sums[subset])
    assert Shorten(drop=2, select="dp").apply(lm.twin(), data).dropped == {"blocks": best}


@pytest.mark.parametrize(("select", "dropped"), [("first", (0, 1)), ("last", (2, 3)), ("alternate", (0, 2))])
def test_baselines_go_by_place(select: str, dropped: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    step = Shorten(drop=2, select=select)
    assert not step.needs_data
    assert step.apply(deep("gpt2", monkeypatch), None).dropped == {"blocks": dropped}


def test_bytes_are_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = deep("bert-classifier", monkeypatch)
    whole = lm.stored_nbytes(lm.sites(("all",)))
    data = data_for(lm)
    outcome = Shorten(blocks=(1, 2), replace="linear").apply(lm, data)
    assert outcome.before == whole
    left = sum(lm.stored_nbytes(lm.sites(("all",))).values())
    (mapped,) = [module for module in lm.model.modules() if isinstance(module, Mapped)]
    assert outcome.nbytes == left + mapped.nbytes() == left + 4 * 32 * 32
    again = Compress(method=Svd(rank=4)).apply(lm, None)
    assert again.dense_nbytes == left


def test_sublayers_are_counted_by_themselves() -> None:
    lm = BY_NAME["t5"].lm()
    data = data_for(lm)
    outcome = Shorten(drop=2, parts="sublayers", select="greedy").apply(lm, data)
    assert sum(len(blocks) for blocks in outcome.dropped.values()) == 2
    assert sum(isinstance(module, Constant) for module in lm.model.modules()) >= 2 * 2
    assert outcome.nbytes == sum(lm.stored_nbytes(lm.sites(("all",))).values())
    with pytest.raises(UserError, match="is dropped already"):
        Shorten(blocks={stack: blocks for stack, blocks in outcome.dropped.items()}).apply(lm, None)


def test_nothing_dropped_is_the_model_as_it_is() -> None:
    lm = BY_NAME["bert-classifier"].lm()
    before = outputs(lm.model)
    step = Shorten(drop=0, replace="linear")
    assert not step.needs_data
    outcome = step.apply(lm, None)
    assert torch.equal(outputs(lm.model), before)
    assert outcome.nbytes == outcome.dense_nbytes and not outcome.dropped


def test_padding_changes_nothing() -> None:
    """Texts padded further choose and fit the same."""
    lm = BY_NAME["bert-classifier"].lm()
    batches = labelled_batches(lm, 4)
    wider = [{name: nn.functional.pad(tensor, (0, 3)) for name, tensor in batch.items()} for batch in batches]
    found = []
    for data in (Calibration(batches), Calibration(wider)):
        small = lm.twin()
        Shorten(drop=1, replace="linear").apply(small, data)
        found.append(outputs(small.model))
    assert torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("bert-base", {}, "give either drop or blocks"),
        ("bert-base", {"drop": 1, "blocks": (0,)}, "give either drop or blocks"),
        ("bert-base", {"drop": 2}, r"drop must be at most 1, as one block stays in the model; got 2\."),
        ("bert-base", {"drop": -1}, r"drop must be at least 0; got -1\."),
        ("bert-base", {"drop": 4, "parts": "sublayers"}, "drop must be at most 3, as one sub-block stays in the model"),
        ("bert-base", {"blocks": (0, 1)}, "All 2 blocks of the model would be dropped"),
        ("bert-base", {"blocks": (7,)}, "There is no block '7': they are numbered from 0 to 1"),
        ("bert-base", {"blocks": ("1.mlp",)}, "There is no part 'mlp' in block 1: known are attention, ffn"),
        ("bert-base", {"blocks": (1, "1.ffn")}, "'1.ffn' must be left out"),
        ("bert-base", {"blocks": (1,), "select": "last"}, "must be left out where blocks says"),
        ("bert-base", {"drop": 1, "parts": "sublayers", "replace": "linear"}, "replace must be nothing or bias"),
        ("bart", {"blocks": (0,)}, r"of which stack they are: \{encoder: \[...\], decoder: \[...\]\}"),
        ("bart", {"drop": {"encodr": 1}}, "There is no stack 'encodr': did you mean 'encoder'"),
        ("bart", {"drop": {"encoder": 2}}, "at most 1, as one block stays in the encoder; got 2"),
        ("t5", {"drop": {"encoder": 1}}, "The decoder of 't5' would have more blocks than the encoder"),
        ("albert-masked", {"drop": 1, "parts": "sublayers"}, "The layers of 'albert' share their block"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(name: str, arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Shorten(**arguments).check(BY_NAME[name].lm())


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("gpt2", {"blocks": (0,), "replace": "linear"}, "Nothing can stand for the first blocks of 'gpt2'"),
        ("albert-masked", {"blocks": (1,), "replace": "bias"}, "Nothing can stand for .*'albert'"),
        ("t5", {"drop": 1, "select": "first"}, "select: first drops from one stack"),
    ],
)
def test_what_cannot_be_done_here_is_one_sentence(name: str, arguments: dict, sentence: str) -> None:
    lm = BY_NAME[name].lm()
    with pytest.raises(UserError, match=sentence):
        Shorten(**arguments).apply(lm, data_for(lm))


def test_missing_data_is_one_sentence() -> None:
    with pytest.raises(UserError, match="'shorten' needs calibration data"):
        Shorten(drop=1).apply(BY_NAME["gpt2"].lm(), None)
    with pytest.raises(UserError, match="calibration data is empty"):
        Shorten(drop=1).apply(BY_NAME["gpt2"].lm(), Calibration([]))
