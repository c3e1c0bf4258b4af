"""The choice of blocks, against equations, results by hand and brute force."""

from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

from laconic.calibrate import Calibration
from laconic.calibrate.activation_capture import ActivationCapture
from laconic.compress import Shorten
from laconic.compress.depth.cuts import Cut, Limits, all_cuts
from laconic.compress.depth.hidden_states import stack_hidden_states
from laconic.compress.depth.importance import apply_gates, distances, importances, influences
from laconic.compress.depth.selection import choose_runs
from laconic.compress.depth.trial import Fold, Trial, drop_cuts
from laconic.compress.kl_metric import Divergences, KLMetric
from laconic.model import LanguageModel, Predictions, predict
from laconic.model.layers import consecutive_ranges, find_layers
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches
from tests.compress.test_depth import NAMES, data_for, kl
from tests.model.test_depth import deep


def hidden_states(lm: LanguageModel, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Before each block and behind the last, as transformers gives them, tokens that count only."""
    paths = find_layers(lm)[0].paths
    with ActivationCapture(lm.model, paths) as tap, torch.no_grad():
        predict(lm, batch)
    states = [*(tap.inputs[path][0] for path in paths), tap.outputs[paths[-1]][0]]
    return [state[batch["attention_mask"].bool()] for state in states]


@pytest.mark.parametrize("name", ["bert-classifier", "llama"])
def test_influence_and_angles_are_their_equations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = deep(name, monkeypatch)
    data = data_for(lm, 3)
    cuts = all_cuts(lm, "blocks")
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
    chosen = Shorten(drop=2, select="angular").apply(lm.shallow_copy(), data).dropped["blocks"]
    assert chosen == (int(expected.argmin()), int(expected.argmin()) + 1)
    least = Shorten(drop=2, select="influence").apply(lm.shallow_copy(), data).dropped["blocks"]
    assert set(least) == set(by_hand.argsort()[:2].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_sublayers_lie_between_points_of_the_stream(name: str) -> None:
    """The points before the sub-blocks of blocks are those before the blocks, and others between."""
    lm = BY_NAME[name].lm()
    batch = data_for(lm, 1).batches[0]
    blocks, parts = (stack_hidden_states(lm, batch, all_cuts(lm, what)) for what in ("blocks", "sublayers"))
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
    cuts = [cut for row in all_cuts(lm, parts).values() for cut in row]
    found = importances(lm, data, cuts)

    def values(gates: torch.Tensor, batch: dict[str, torch.Tensor]) -> Predictions:
        with apply_gates(lm, cuts, gates), torch.no_grad():
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
    """Every block is tried as the one to drop; its replacement is judged on rows that it was not fitted on."""
    lm = deep("bert-classifier", monkeypatch)
    data = data_for(lm)
    halves = [Calibration(data.batches[::2]), Calibration(data.batches[1::2])]
    found: dict[int, float] = {}
    for block in range(4):
        for fitted_on, judges in (halves, halves[::-1]):
            small = lm.shallow_copy()
            Shorten(blocks=(block,), replace=replace).apply(small, fitted_on)
            found[block] = found.get(block, 0) + kl(small, lm, judges)
    best = min(found, key=lambda block: found[block])
    for select in ("greedy", "dp"):
        assert Shorten(drop=1, select=select, replace=replace).apply(lm.shallow_copy(), data).dropped == {
            "blocks": (best,)
        }


def test_runs_are_the_best_of_the_best_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of least sum over all subsets are found, and the one with the least divergence is taken."""
    lm = deep("gpt2", monkeypatch)
    data = data_for(lm)
    judge = KLMetric(lm, data.batches)

    def cost(blocks: tuple[int, ...]) -> float:
        small = lm.shallow_copy()
        drop_cuts(small, [Cut("blocks", block) for block in blocks], None, lm)
        return judge(small)

    best = {}
    for subset in combinations(range(4), 2):
        runs = consecutive_ranges(subset)
        total = sum(cost(tuple(run)) for run in runs)
        best[len(runs)] = min(best.get(len(runs), (total, subset)), (total, subset))
    expected = min((subset for _, subset in best.values()), key=cost)
    assert Shorten(drop=2, select="dp").apply(lm.shallow_copy(), data).dropped == {"blocks": expected}


def made_up(lm: LanguageModel, divergences: dict[tuple[int, ...], float]) -> tuple[Trial, list[tuple[int, ...]]]:
    """A trial that finds these, by the blocks that are gone, and a list of what it was asked for."""
    (layers,) = find_layers(lm)
    numbers = {id(next(lm.model.get_submodule(path).parameters())): n for n, path in enumerate(layers.paths)}
    asked: list[tuple[int, ...]] = []

    class MadeUp(KLMetric):
        def each(self, changed: LanguageModel) -> Divergences:
            (left,) = find_layers(changed)
            stay = {numbers[id(next(changed.model.get_submodule(path).parameters()))] for path in left.paths}
            asked.append(tuple(sorted(set(numbers.values()) - stay)))
            return Divergences(torch.tensor([divergences[asked[-1]]]), torch.ones(1))

    return Trial(lm, Calibration([]), "nothing", [Fold(None, MadeUp(lm, []))], held_out=False), asked


EVERYTHING = Limits(lambda _: True, lambda _: True)


def test_runs_that_add_up_wrongly_are_measured_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks 0 and 2 are each missed least, and together most; next comes one run, whose divergence is no guess."""
    lm = deep("gpt2", monkeypatch)
    alone = {(0,): 0.1, (1,): 0.5, (2,): 0.1, (3,): 0.5, (0, 1): 0.9, (1, 2): 0.8, (2, 3): 0.4}
    trial, asked = made_up(lm, {**alone, (0, 2): 3.0})
    row = all_cuts(lm, "blocks")["blocks"]
    assert choose_runs(trial, row, 2, EVERYTHING, False) == [row[2], row[3]]
    assert len(asked) == len(alone) + 1, "the one run was measured before"
    trial, _ = made_up(lm, {**alone, (0, 2): 0.3})
    assert choose_runs(trial, row, 2, EVERYTHING, False) == [row[0], row[2]]
    never = Limits(lambda _: True, lambda cuts: row[0] not in cuts)
    trial, _ = made_up(lm, {**alone, (1, 3): 0.2})
    assert choose_runs(trial, row, 2, never, False) == [row[2], row[3]], "what cannot go together is no plan"


@pytest.mark.parametrize(("select", "dropped"), [("first", (0, 1)), ("last", (2, 3)), ("alternate", (0, 2))])
def test_baselines_go_by_place(select: str, dropped: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    step = Shorten(drop=2, select=select)
    assert not step.needs_data
    assert step.apply(deep("gpt2", monkeypatch), None).dropped == {"blocks": dropped}
