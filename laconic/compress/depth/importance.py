"""Importance of blocks: how much they rotate the hidden states, and how much the predictions depend on them.

Hidden states: X. Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", arXiv
2403.03853, eq. 1, define the Block Influence 1 − E[cos(h_l, h_{l+1})]. A. Gromov et al., "The Unreasonable
Ineffectiveness of the Deeper Layers", arXiv 2403.17887, eq. 4, define the angular distance
d(h_l, h_{l+n}) = arccos(cos(h_l, h_{l+n})) / π at the last token. Only in a causal model does the last token summarise
the text, so for other models the distance is averaged over all tokens. Padding is left out.

Gates: P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section 3.2, put a gate ξ = 1
on a part of the network; its importance is (∂L/∂ξ)², averaged over the samples. Here a sample is a row, L is a loss of
the Fisher information (`laconic.calibrate.losses.fisher_losses`), and the gate of a block multiplies its update
of the hidden states, h + ξ (f(h) − h). Then ½ E[(∂L/∂ξ)²] is the KL divergence that a second-order expansion predicts
for dropping the block, in nats per prediction; the first-order term is zero.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from laconic import processes
from laconic.calibrate import Calibration
from laconic.calibrate.collation import to_device
from laconic.calibrate.gate_pass import BlockGates, Slopes, differentiate_gates
from laconic.calibrate.losses import fisher_losses
from laconic.compress.depth.cuts import Cut, subblock_at
from laconic.compress.depth.hidden_states import state_pairs
from laconic.model import Batch, LanguageModel, ModelTask, predict
from laconic.model.layers import find_layers


def influences(lm: LanguageModel, data: Calibration, cuts: Mapping[str, list[Cut]]) -> dict[Cut, float]:
    """Compute the Block Influence of each cut.

    Args:
        lm: the model.
        data: calibration data.
        cuts: all cuts of each stack, in forward order.

    Raises:
        UserError: as `state_pairs`.
    """
    changes = {cut: 0.0 for row in cuts.values() for cut in row}
    counts: Counter[Cut] = Counter()
    for pair in state_pairs(lm, data, cuts, 1):
        counts[pair.cut] += int(pair.rows.counted.sum())
        before, after = (pair.rows.without_padding(states) for states in (pair.before, pair.after))
        changes[pair.cut] += (1 - _cosines(before, after)).sum().item()
    return _means(changes, counts)


def distances(lm: LanguageModel, data: Calibration, cuts: Mapping[str, list[Cut]], length: int) -> dict[Cut, float]:
    """Compute the angular distance across each run of `length` consecutive cuts.

    Args:
        lm: the model.
        data: calibration data.
        cuts: all cuts of each stack, in forward order.
        length: number of cuts of a run.

    Returns:
        The distance, in [0, 1], by the first cut of each run.

    Raises:
        UserError: as `state_pairs`.
    """
    changes = {cut: 0.0 for row in cuts.values() for cut in row[: max(len(row) - length + 1, 0)]}
    counts: Counter[Cut] = Counter()
    for pair in state_pairs(lm, data, cuts, length):
        chosen = _last_token_mask(pair.rows.counted) if lm.task is ModelTask.CAUSAL else pair.rows.counted
        counts[pair.cut] += int(chosen.sum())
        cosines = _cosines(pair.before[chosen], pair.after[chosen]).clamp(-1, 1)
        changes[pair.cut] += (cosines.arccos() / torch.pi).sum().item()
    return _means(changes, counts)


def _means(sums: Mapping[Cut, float], counts: Mapping[Cut, int]) -> dict[Cut, float]:
    """The mean of each cut over the tokens of all processes."""
    pairs = [[sums[cut], counts.get(cut, 0)] for cut in sums]
    both = torch.tensor(pairs, dtype=torch.float64, device="cpu").reshape(-1, 2)
    totals, numbers = processes.all_reduce_sum(both).T
    return dict(zip(sums, (totals / numbers.clamp(min=1)).tolist(), strict=True))


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return functional.cosine_similarity(a.double(), b.double(), dim=-1)


def _last_token_mask(counted: Tensor) -> Tensor:
    """A mask that is True at the last token of each sequence."""
    numbers = torch.arange(counted.shape[1], device=counted.device) * counted
    last = numbers.argmax(1, keepdim=True)
    return torch.zeros_like(counted).scatter(1, last, True) & counted


Gates = Float[Tensor, "cuts rows"]


def importances(lm: LanguageModel, data: Calibration, cuts: Sequence[Cut]) -> dict[Cut, float]:
    """Compute the first-order importance ½ Σ_rows (∂L/∂ξ)² / predictions of each cut, in nats per prediction.

    Args:
        lm: the model.
        data: calibration data.
        cuts: blocks or sub-blocks, each with a gate ξ of its own.

    Raises:
        UserError: the model is streamed, and there is no batch, its predictions are not finite, or its blocks do not
            form a chain.
    """
    if lm.loans is not None:
        return _streamed_importances(lm, data, cuts)
    total = torch.zeros(len(cuts), dtype=torch.float64, device=lm.device)
    count = 0
    trained = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    lm.model.requires_grad_(False)
    try:
        with processes.sync_errors():
            for on_cpu, generator in data.share("Differentiating by gates"):
                batch = to_device(on_cpu, lm.device)
                gates = torch.ones(len(cuts), len(batch["input_ids"]), device=lm.device, requires_grad=True)
                with apply_gates(lm, cuts, gates), torch.enable_grad():
                    predictions, _ = predict(lm, batch)
                    for score in fisher_losses(predictions, data.labels, generator):
                        (slopes,) = torch.autograd.grad(score, gates, retain_graph=True)
                        total += slopes.double().square().sum(1)
                count += len(predictions.values)
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    count = int(processes.all_reduce_sum(torch.tensor(count, device="cpu")))
    return dict(zip(cuts, (0.5 * processes.all_reduce_sum(total) / max(count, 1)).tolist(), strict=True))


def _streamed_importances(lm: LanguageModel, data: Calibration, cuts: Sequence[Cut]) -> dict[Cut, float]:
    places = {path: (layers.name, at) for layers in find_layers(lm) for at, path in enumerate(layers.paths)}
    total = torch.zeros(len(cuts), dtype=torch.float64, device=lm.device)

    def make(path: str, _: int, batch: Batch) -> BlockGates:
        numbers = [number for number, cut in enumerate(cuts) if (cut.stack, cut.layer) == places[path]]
        own = [cuts[number] for number in numbers]
        gates = torch.ones(len(own), len(batch["input_ids"]), device=lm.device, requires_grad=True)

        def finish(slopes: Slopes) -> None:
            for slope in slopes[0]:
                total[numbers] += slope.double().square().sum(1)

        return BlockGates([gates], partial(apply_gates, lm, own, gates), finish)

    count = differentiate_gates(lm, data, make)
    return dict(zip(cuts, (0.5 * processes.all_reduce_sum(total) / max(count, 1)).tolist(), strict=True))


@contextmanager
def apply_gates(lm: LanguageModel, cuts: Sequence[Cut], gates: Gates) -> Iterator[None]:
    """Within the context, the update of the hidden states by each cut is multiplied by a gate.

    Args:
        lm: the model.
        cuts: blocks or sub-blocks.
        gates: one gate for each cut and row of the batch, (cuts, rows).
    """
    stacks = {layers.name: layers for layers in find_layers(lm)}
    # A block that several layers share is called once for each of them.
    calls: dict[str, dict[int, Tensor]] = {}
    with ExitStack() as hooks:
        for cut, gate in zip(cuts, gates, strict=True):
            layers = stacks[cut.stack]
            if cut.part is not None:
                writer = lm.model.get_submodule(subblock_at(lm, layers, cut).writer)
                hooks.callback(writer.register_forward_hook(_scale_outputs(gate)).remove)
            else:
                path = layers.paths[cut.layer]
                calls.setdefault(path, {})[layers.paths[: cut.layer].count(path)] = gate
        for path, by_call in calls.items():
            hook = lm.model.get_submodule(path).register_forward_hook(_scale_updates(by_call), with_kwargs=True)
            hooks.callback(hook.remove)
        yield


def _scale_outputs(gate: Tensor) -> Callable[..., Any]:
    def on_return(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        lines = output.reshape(len(gate), -1, output.shape[-1])
        return (lines * gate[:, None, None].to(output.dtype)).reshape(output.shape)

    return on_return


def _scale_updates(by_call: dict[int, Tensor]) -> Callable[..., Any]:
    calls: Counter[nn.Module] = Counter()

    def on_return(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        gate = by_call.get(calls[module])
        calls[module] += 1
        if gate is None:
            return output
        h_in = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        h_out = output[0] if isinstance(output, tuple) else output
        # The choices of a row share its gate.
        by_sequence = gate.repeat_interleave(len(h_out) // len(gate))[:, None, None]
        # h + ξ (f(h) − h), so that a gate of 1 changes no bit of f(h).
        mixed = h_out + (by_sequence.to(h_out.dtype) - 1) * (h_out - h_in)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    return on_return
