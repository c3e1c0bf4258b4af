"""Experts that saw fewer tokens than their matrices are wide: their statistics are mixed with shared ones.

The shared moment (`laconic.numerics.pooling`) depends on the axes of the statistic. Those in the residual stream mean
the same for all experts of a layer, but channel j of one expert is not channel j of another:

- The inputs of the first matrices are inputs of the layer: S is their mean over all experts.
- The inputs of the other matrices are channels of the expert: S is the expert's own response to a sample of all tokens
  that entered the layer.
- The gradients at the outputs of the last matrices are in the residual stream: S is their mean over all experts.
- The gradients at the other outputs are those of channels: S is their mean over all experts and channels.

An expert without any token has the shared moment alone, and counts as one token.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from laconic.calibrate.expert_statistics import StackStatistic
from laconic.calibrate.experts import ExpertRecorder, StackRecorder
from laconic.calibrate.statistics import (
    AbsMax,
    AbsMean,
    Fisher,
    GradCovariance,
    InputCovariance,
    InputStatistic,
    Mean,
    precise,
)
from laconic.numerics.pooling import level, pooled, shrink_towards

MEANS = (InputCovariance, Mean, AbsMean)
"""The statistics of the inputs that are means over tokens. Those of plug-ins are not shrunk."""


def starved_experts(layer: ExpertRecorder, width: int) -> list[int]:
    """The numbers of the experts that saw fewer tokens than `width`."""
    return (layer.rows < width).nonzero().flatten().tolist()


def describe_starved(layers: Sequence[ExpertRecorder]) -> str | None:
    """A sentence about the layers whose experts saw fewer tokens than they are wide; None if there are none."""
    found = [(len(starved_experts(layer, layer.width)), layer) for layer in layers if layer.measures]
    few = [(count, layer) for count, layer in found if count]
    if not few:
        return None
    count, layer = max(few, key=lambda pair: pair[0])
    others = f", and experts of {len(few) - 1} other layer{'s' if len(few) > 2 else ''} too" if len(few) > 1 else ""
    return (
        f"{count} of {len(layer.rows)} experts of '{layer.path}' saw fewer tokens than the {layer.width} columns of "
        f"their matrices (the fewest {layer.rows.min().item()}){others}: their statistics are mixed with those of the "
        "whole layer; more calibration rows give them their own."
    )


@torch.no_grad()
def shrink_starved(layer: ExpertRecorder) -> None:
    """Mix the statistics of experts with few tokens with shared ones, in place; to be called once, after `gather`.

    Args:
        layer: the statistics of the experts of one layer.
    """
    for recorder in layer.stacks.values():
        for statistic in () if layer.responds(recorder) else recorder.inputs:
            shared = _pooled_inputs(statistic)
            for expert in starved_experts(layer, recorder.stack.in_features):
                _shrink_inputs(statistic, expert, shared, int(layer.rows[expert]), recorder.stack.in_features)
        for statistic in recorder.gradients:
            _shrink_gradients(layer, recorder, statistic)
    responding = [recorder for recorder in layer.stacks.values() if layer.responds(recorder)]
    for expert in starved_experts(layer, max((recorder.stack.in_features for recorder in responding), default=0)):
        _shrink_to_response(layer, responding, expert)


def _pooled_inputs(statistic: StackStatistic) -> Tensor:
    return statistic.totals.amax(0) if statistic.kind is AbsMax else pooled(statistic.totals, statistic.counts)


def _shrink_inputs(statistic: StackStatistic, expert: int, shared: Tensor, rows: int, width: int) -> None:
    """Mix a statistic of the inputs of one expert, which saw `rows` tokens, with `width` tokens of the shared mean."""
    total = statistic.totals[expert]
    if statistic.kind is AbsMax:
        torch.maximum(total, shared, out=total)
    elif statistic.kind in MEANS:
        count = statistic.counts[expert].item() or 1.0
        statistic.counts[expert] = count
        total.copy_(count * shrink_towards(total / count, shared, rows, width))


def _shrink_to_response(layer: ExpertRecorder, recorders: Sequence[StackRecorder], expert: int) -> None:
    """Mix the statistics of the inputs of one expert with those of its response to the sample of the layer's inputs."""
    assert layer.sample is not None
    rows = int(layer.rows[expert])
    for recorder, x in zip(recorders, _respond(layer, recorders, expert), strict=True):
        width = recorder.stack.in_features
        for statistic in recorder.inputs if rows < width else ():
            assert issubclass(statistic.kind, InputStatistic)
            response = statistic.kind.empty(width, False, x.device)
            response.update(x)
            _shrink_inputs(statistic, expert, response.total / (1 if statistic.kind is AbsMax else len(x)), rows, width)


def _respond(layer: ExpertRecorder, recorders: Sequence[StackRecorder], expert: int) -> list[Tensor]:
    """The inputs of the stacks of `recorders` if every token of the sample is routed to one expert."""
    assert layer.sample is not None
    inputs: dict[nn.Module, Tensor] = {}
    sample = layer.sample.rows.to(layer.rows.device)
    index = torch.full((len(sample), 1), expert, device=sample.device)

    def on_call(stack: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[stack] = precise(args[0])

    with ExitStack() as hooks:
        for recorder in recorders:
            hooks.callback(recorder.stack.register_forward_pre_hook(on_call).remove)
        layer.layer(sample, index, sample.new_ones(len(sample), 1))
    return [inputs[recorder.stack] for recorder in recorders]


def _shrink_gradients(layer: ExpertRecorder, recorder: StackRecorder, statistic: StackStatistic) -> None:
    """Mix a statistic of the gradients of experts with few tokens with that of all; the number of tokens stays."""
    out_features, in_features = recorder.stack.shape
    shared = pooled(statistic.totals, layer.rows)
    is_last = recorder.stack is layer.last
    if statistic.kind is GradCovariance:
        width, shared = out_features, shared if is_last else level(shared)
    elif statistic.kind is Fisher:
        # The mean over the axes that are channels of an expert.
        channels = [0] if recorder.stack in layer.read_input else [1] if is_last else [0, 1]
        width, shared = in_features, shared.mean(channels, keepdim=True).expand_as(shared)
    else:
        return
    for expert in starved_experts(layer, width):
        rows = max(int(layer.rows[expert]), 1)
        mean = shrink_towards(statistic.totals[expert] / rows, shared, int(layer.rows[expert]), width)
        statistic.totals[expert] = rows * mean
