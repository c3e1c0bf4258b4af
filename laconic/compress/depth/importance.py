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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from laconic import processes
from laconic.calibrate import Calibration
from laconic.calibrate.activation_capture import TOLERANCE, ActivationCapture
from laconic.calibrate.collation import to_device
from laconic.calibrate.losses import fisher_losses
from laconic.calibrate.token_rows import TokenRows, token_rows
from laconic.compress.depth.cuts import Cut, subblock_at
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, ModelTask, predict, token_masks
from laconic.model.depth import SubBlock, find_subblocks
from laconic.model.layers import Layers, find_layers

Points = list[Float[Tensor, "sequences tokens d"]]
"""The hidden states before each cut of a stack, in forward order, and after the last cut."""


def influences(lm: LanguageModel, data: Calibration, cuts: dict[str, list[Cut]]) -> dict[Cut, float]:
    """Compute the Block Influence of each cut.

    Args:
        lm: the model.
        data: calibration data.
        cuts: all cuts of each stack, in forward order.
    """
    changes = {cut: 0.0 for row in cuts.values() for cut in row}
    counts: Counter[str] = Counter()
    for batch in data.track(data.batches, "Measuring the hidden states"):
        for stack, (points, rows) in stack_hidden_states(lm, batch, cuts).items():
            counts[stack] += int(rows.counted.sum())
            for cut, before, after in zip(cuts[stack], points[:-1], points[1:], strict=True):
                changes[cut] += (1 - _cosines(rows.without_padding(before), rows.without_padding(after))).sum().item()
    return {cut: value / max(counts[cut.stack], 1) for cut, value in changes.items()}


def distances(lm: LanguageModel, data: Calibration, cuts: dict[str, list[Cut]], length: int) -> dict[Cut, float]:
    """Compute the angular distance across each run of `length` consecutive cuts.

    Args:
        lm: the model.
        data: calibration data.
        cuts: all cuts of each stack, in forward order.
        length: number of cuts of a run.

    Returns:
        The distance, in [0, 1], by the first cut of each run.
    """
    changes = {cut: 0.0 for row in cuts.values() for cut in row[: max(len(row) - length + 1, 0)]}
    counts: Counter[str] = Counter()
    for batch in data.track(data.batches, "Measuring the hidden states"):
        for stack, (points, rows) in stack_hidden_states(lm, batch, cuts).items():
            chosen = _last_token_mask(rows.counted) if lm.task is ModelTask.CAUSAL else rows.counted
            counts[stack] += int(chosen.sum())
            for cut, before, after in zip(cuts[stack], points, points[length:], strict=False):
                cosines = _cosines(before[chosen], after[chosen]).clamp(-1, 1)
                changes[cut] += (cosines.arccos() / torch.pi).sum().item()
    return {cut: value / max(counts[cut.stack], 1) for cut, value in changes.items()}


@torch.no_grad()
def stack_hidden_states(
    lm: LanguageModel, batch: Batch, cuts: dict[str, list[Cut]]
) -> dict[str, tuple[Points, TokenRows]]:
    """Run one batch, and return for each stack the hidden states around its cuts.

    Args:
        lm: the model.
        batch: the batch.
        cuts: all cuts of each stack, in forward order.

    Returns:
        By stack: the hidden states before each cut and after the last one, and which of their rows are padding.
    """
    batch = to_device(batch, lm.device)
    # Without cuts, the blocks of the model may be unknown.
    stacks = [layers for layers in find_layers(lm) if layers.name in cuts] if cuts else []
    parts = {
        layers.name: [find_subblocks(lm, layers, number) for number in range(len(layers))]
        for layers in stacks
        if any(cut.part is not None for cut in cuts[layers.name])
    }
    paths = [path for layers in stacks for path in layers.paths]
    paths += [path for rows in parts.values() for row in rows for part in row for path in (part.inner[0], part.writer)]
    with ActivationCapture(lm.model, dict.fromkeys(paths)) as capture:
        predict(lm, batch)
    states = {}
    for layers in stacks:
        points = _points(capture, layers, parts.get(layers.name))
        rows = stack_rows(lm, batch, layers, points[0])
        states[layers.name] = ([rows.lines(point) for point in points], rows)
    return states


def stack_rows(lm: LanguageModel, batch: Batch, layers: Layers, hidden: Tensor) -> TokenRows:
    """Return which rows of the hidden states of a stack are padding.

    Args:
        lm: the model.
        batch: the batch.
        layers: the blocks of the stack.
        hidden: its hidden states; only the shape is used.
    """
    return token_rows(hidden.shape[:-1], layers.stack.reads, False, *token_masks(lm.task, batch))


def _points(capture: ActivationCapture, layers: Layers, parts: Sequence[Sequence[SubBlock]] | None) -> Points:
    points: Points = []
    calls: Counter[str] = Counter()
    for number, path in enumerate(layers.paths):
        h_in, h_out = capture.inputs[path][calls[path]], capture.outputs[path][calls[path]]
        calls[path] += 1
        points[-1:] = [h_in] if parts is None else _subblock_points(capture, h_in, h_out, parts[number])
        points.append(h_out)
    return points


def _subblock_points(capture: ActivationCapture, h_in: Tensor, h_out: Tensor, parts: Sequence[SubBlock]) -> Points:
    """The hidden states before each sub-block of a block; dropped sub-blocks are left out."""
    points = _running_points(capture, h_in, h_out, parts)
    return [point for point, part in zip(points, parts, strict=True) if not part.is_dropped]


def _running_points(capture: ActivationCapture, h_in: Tensor, h_out: Tensor, parts: Sequence[SubBlock]) -> Points:
    """The running sums (pre-LN), or the inputs of the sub-blocks if there are norms between them (post-LN)."""
    written = [capture.outputs[part.writer][0].reshape(h_in.shape) for part in parts]
    sums = [h_in]
    for output in written:
        sums.append(sums[-1] + output)
    if is_close(sums[-1], h_out):
        return sums[:-1]
    read = [capture.inputs[part.inner[0]][0] for part in parts]
    # The first projection may get its input as (tokens, rows, width), as in Longformer.
    if is_close(read[0], h_in) or is_close(read[0].transpose(0, 1), h_in):
        return [h_in, *(point.reshape(h_in.shape) for point in read[1:])]
    raise UserError("The hidden states between the parts of a block cannot be found in this model; use parts: blocks.")


def is_close(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding."""
    return a.shape == b.shape and bool((a - b).norm() <= TOLERANCE * b.norm())


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
    """
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
    count = int(processes.all_reduce_sum(torch.tensor(count)))
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
        mixed = h_in + by_sequence.to(h_out.dtype) * (h_out - h_in)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    return on_return
