"""Statistics of experts against sums over texts and experts by hand, whatever the batches, padding and processes."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic.calibrate import (
    AbsMax,
    AbsMean,
    Calibration,
    Fisher,
    GradCovariance,
    InputCovariance,
    LayerStats,
    Mean,
    SequentialConfig,
    collect_stats,
    merge,
    sequential_calibrate,
)
from laconic.errors import Notice, UserError
from laconic.formats.expert_layer import find_expert_stacks
from laconic.model import LanguageModel, predict
from tests.architectures import VOCABULARY, Architecture
from tests.experts import EXPERTS, MIXTURES

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")

INPUT_KINDS = (InputCovariance, Mean, AbsMean, AbsMax)
KINDS = (*INPUT_KINDS, GradCovariance, Fisher)
PATH = "model.layers.1.mlp.experts"
"""The first block of DeepSeek-V3 is dense."""
ENOUGH = 100
"""Texts after which every expert has more tokens than columns."""


def tiny(name: str) -> LanguageModel:
    """A tiny mixture in fp64."""
    lm = Architecture(name, MIXTURES[name][0]).lm()
    lm.model.double()
    # The others of transformers know no fp64.
    lm.model.set_experts_implementation("eager")
    return lm


def texts(count: int = ENOUGH) -> list[Tensor]:
    """Token ids of texts of different lengths."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCABULARY, (12 - number % 5,), generator=generator) for number in range(count)]


def batches(rows: list[Tensor], size: int, padding: int = 0) -> list[dict[str, Tensor]]:
    """Batches of `size` texts, padded to the longest of them and by `padding` tokens more."""
    made = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids, mask = torch.zeros(2, len(part), max(map(len, part)) + padding, dtype=torch.long)
        for row, text in enumerate(part):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def measure(lm: LanguageModel, data: list[dict[str, Tensor]]) -> dict[str, LayerStats]:
    """The statistics of the experts of one layer; gradients of the labels of the data."""
    return collect_stats(lm, Calibration(data, labels="data"), set(KINDS), lm.sites((f"{PATH}.*",)))


def apply_gate(module: Any, z: Tensor) -> Tensor:
    """The activation of transformers' module of experts, between its two products."""
    return module._apply_gate(z)


class ByHand:
    """The sums of both matrices of every expert, one text and expert after another, through autograd."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.module = lm, lm.model.get_submodule(PATH)
        self.stacks = {f"{PATH}.{name}": stack for name, stack in find_expert_stacks(self.module).items()}
        names = [f"{name}.{expert}" for name in self.stacks for expert in range(EXPERTS)]
        self.sums: dict[str, dict[type, Tensor]] = {name: {} for name in names}
        self.mass = dict.fromkeys(names, 0.0)
        self.tokens = dict.fromkeys(names, 0)
        self.predictions = 0

    def add(self, text: Tensor) -> None:
        """Add one text, which runs without padding through transformers' module."""
        calls: list[tuple[Tensor, ...]] = []
        gradients: list[Tensor] = []

        def on_return(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            calls.append(args)
            leaf = output.detach().requires_grad_()
            leaf.register_hook(gradients.append)
            return leaf.clone()

        hook = self.module.register_forward_hook(on_return)
        predictions, _ = predict(self.lm, batches([text], 1)[0])
        hook.remove()
        assert predictions.labels is not None
        predictions.distribution.loss(predictions.values, predictions.labels).sum().backward()
        self.predictions += len(predictions.values)
        ((hidden, index, weights),), (gradient,) = calls, gradients
        for expert in index.unique().tolist():
            tokens, choice = (index == expert).nonzero(as_tuple=True)
            w = weights[tokens, choice].detach()[:, None]
            self._add_expert(expert, hidden[tokens].detach(), w, gradient[tokens])

    def _add_expert(self, expert: int, x: Tensor, w: Tensor, g: Tensor) -> None:
        """Add the tokens of one expert: x and g (tokens, width) enter and leave the layer, w (tokens, 1)."""
        (first, inner), (last, outer) = self.stacks.items()
        z = inner.slice(expert)(x).detach().requires_grad_()
        h = apply_gate(self.module, z)
        (gradient,) = torch.autograd.grad(outer.slice(expert)(h), z, w * g)
        for name, inputs, outputs in ((first, x, gradient), (last, h.detach(), w * g)):
            key = f"{name}.{expert}"
            self._sum(key, InputCovariance, inputs.T @ (w**2 * inputs))
            self._sum(key, Mean, (w**2 * inputs).sum(0))
            self._sum(key, AbsMean, (w**2 * inputs.abs()).sum(0))
            self._sum(key, GradCovariance, outputs.T @ outputs)
            self._sum(key, Fisher, (outputs.T @ inputs).square())
            largest = inputs.abs().amax(0)
            self.sums[key][AbsMax] = torch.maximum(self.sums[key].get(AbsMax, largest), largest)
            self.mass[key] += w.square().sum().item()
            self.tokens[key] += len(x)

    def _sum(self, key: str, kind: type, amount: Tensor) -> None:
        self.sums[key][kind] = self.sums[key].get(kind, 0) + amount

    def value(self, key: str, kind: type) -> Tensor:
        if kind is AbsMax:
            return self.sums[key][kind]
        return self.sums[key][kind] / (self.mass[key] if kind in INPUT_KINDS else self.predictions)


def value(stats: LayerStats, kind: type) -> Tensor:
    statistic = stats[kind]
    return statistic.matrix if kind in (InputCovariance, GradCovariance, Fisher) else statistic.vector


def assert_same(one: Mapping[str, LayerStats], other: Mapping[str, LayerStats], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].token_count == other[name].token_count
        for kind in KINDS:
            expected = value(one[name], kind)
            scale = max(expected.abs().max().item(), 1e-12)
            torch.testing.assert_close(value(other[name], kind), expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "deepseek-v3", "gpt-oss"])
def test_every_statistic_is_that_of_a_loop_over_experts(name):
    lm, rows = tiny(name), texts()
    by_hand = ByHand(lm)
    for text in rows:
        by_hand.add(text)
    stats = measure(lm, batches(rows, 7))
    assert stats.keys() == by_hand.sums.keys()
    for key, of_expert in stats.items():
        assert of_expert.token_count == by_hand.tokens[key] >= max(lm.sites((key,))[0].shape)
        for kind in KINDS:
            expected = by_hand.value(key, kind)
            # Routers compute in fp32 whatever the dtype of the model.
            torch.testing.assert_close(
                value(of_expert, kind), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item()
            )


def test_batches_and_padding_do_not_matter():
    """Nor to the experts with too few tokens, whose statistics are mixed with those of a sample of all tokens."""
    lm, rows = tiny("qwen3-moe"), texts(6)
    with pytest.warns(Notice, match="experts of 'model.layers.1.mlp.experts' saw fewer tokens than the"):
        together = measure(lm, batches(rows, 6, padding=3))
    with pytest.warns(Notice):
        apart = measure(lm, batches(rows, 1))
    assert_same(together, apart)


def test_shards_merge_to_the_whole():
    lm, rows = tiny("mixtral"), texts(2 * ENOUGH)
    whole, left, right = (measure(lm, batches(part, 20)) for part in (rows, rows[:ENOUGH], rows[ENOUGH:]))
    merge(left, right)
    assert_same(left, whole)


def test_the_model_is_left_as_it_was():
    lm = tiny("gpt-oss")
    lm.model.train()
    before = dict(lm.model.named_modules())
    with pytest.warns(Notice):
        measure(lm, batches(texts(2), 2))
    after = dict(lm.model.named_modules())
    assert before == after and lm.model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in after.values())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in lm.model.parameters())


def test_sequential_calibration_sees_the_same():
    lm, rows = tiny("mixtral"), texts()
    data, sites = Calibration(batches(rows, 20), labels="data"), lm.sites((f"{PATH}.*",))
    in_order = [pair for problems in sequential_calibrate(lm, data, set(KINDS), sites) for pair in problems]
    assert_same({site.name: problem.stats for site, problem in in_order}, measure(lm, batches(rows, 20)))
    for site, problem in in_order:
        assert torch.equal(problem.weight, site.weight())


def test_anchored_calibration_of_experts_is_refused():
    lm = tiny("mixtral")
    data, config = Calibration(batches(texts(2), 2)), SequentialConfig(anchored=True)
    with pytest.raises(UserError, match=r"anchored must be left out for experts such as 'model\.layers\.0"):
        next(sequential_calibrate(lm, data, {InputCovariance}, lm.sites(("experts",)), config))
    assert next(sequential_calibrate(lm, data, {InputCovariance}, lm.sites(("attention",)), config))


def test_an_expert_without_tokens_has_the_statistics_of_its_layer():
    lm, rows = tiny("deepseek-v3"), texts()
    starved = EXPERTS - 1
    lm.model.get_submodule(PATH.replace("experts", "gate")).get_buffer("e_score_correction_bias")[starved] = -100
    by_hand, hidden = ByHand(lm), []
    hook = by_hand.module.register_forward_pre_hook(lambda _, args: hidden.append(args[0].detach()))
    for text in rows:
        by_hand.add(text)
    hook.remove()
    with pytest.warns(Notice, match=r"1 of 4 experts .* \(the fewest 0\)"):
        stats = measure(lm, batches(rows, 5))
    (first, inner), (last, _) = by_hand.stacks.items()
    others = range(EXPERTS - 1)
    inputs, outputs = stats[f"{first}.{starved}"], stats[f"{last}.{starved}"]
    assert inputs.token_count == outputs.token_count == 0

    def pool(stack: str, kind: type, by: Mapping[str, float]) -> Tensor:
        names = [f"{stack}.{expert}" for expert in others]
        return torch.stack([by_hand.sums[name][kind] for name in names]).sum(0) / sum(by[name] for name in names)

    def assert_equals(found: LayerStats, kind: type, expected: Tensor) -> None:
        torch.testing.assert_close(value(found, kind), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

    for kind in (InputCovariance, Mean, AbsMean):
        assert_equals(inputs, kind, pool(first, kind, by_hand.mass))
    response = apply_gate(by_hand.module, inner.slice(starved)(torch.cat(hidden))).detach()
    assert_equals(outputs, InputCovariance, response.T @ response / len(response))
    assert_equals(outputs, AbsMax, response.abs().amax(0))
    # Gradients are averaged over predictions, and the expert counts as one token.
    assert_equals(outputs, GradCovariance, pool(last, GradCovariance, by_hand.tokens) / by_hand.predictions)
    size = pool(first, GradCovariance, by_hand.tokens).diagonal().mean() / by_hand.predictions
    assert_equals(inputs, GradCovariance, size * torch.eye(inner.out_features, dtype=torch.float64))
    by_input = pool(first, Fisher, by_hand.tokens).mean(0) / by_hand.predictions
    assert_equals(inputs, Fisher, by_input.expand(inner.shape))


def test_few_tokens_are_mixed_with_as_many_shared_ones_as_the_matrix_is_wide():
    lm, rows = tiny("mixtral"), texts(6)
    by_hand = ByHand(lm)
    for text in rows:
        by_hand.add(text)
    with pytest.warns(Notice):
        stats = measure(lm, batches(rows, 3))
    (name, stack), _ = by_hand.stacks.items()
    keys = [f"{name}.{expert}" for expert in range(EXPERTS)]
    shared = sum(by_hand.sums[key][InputCovariance] for key in keys) / sum(by_hand.mass[key] for key in keys)
    assert any(by_hand.tokens[key] < stack.in_features for key in keys)
    for key in keys:
        expected, rows_seen = by_hand.value(key, InputCovariance), by_hand.tokens[key]
        if rows_seen < stack.in_features:
            expected = (rows_seen * expected + stack.in_features * shared) / (rows_seen + stack.in_features)
        torch.testing.assert_close(value(stats[key], InputCovariance), expected, rtol=1e-5, atol=1e-6)
