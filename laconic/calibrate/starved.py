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

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laconic import processes
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
    Statistic,
    precise,
)
from laconic.errors import Notice
from laconic.numerics.pooling import isotropic_moments, pool_moments, shrink_towards

MEANS = (InputCovariance, Mean, AbsMean)
"""The statistics of the inputs that are means over tokens. Those of plug-ins are not shrunk."""


@dataclass(frozen=True)
class StarvedExperts:
    """The experts of one layer whose statistics were mixed with shared ones.

    Args:
        path: the path of the module of experts.
        mixed: the number of these experts.
        experts: the number of all experts of the layer.
        width: the rows or columns of the widest statistic that was mixed; these experts saw fewer tokens.
        fewest: the number of tokens of the expert that saw the fewest.
    """

    path: str
    mixed: int
    experts: int
    width: int
    fewest: int


def warn_of_starved(found: Sequence[StarvedExperts]) -> None:
    """Give one notice about all layers of a run whose statistics were mixed, in the first process only."""
    if found and processes.is_rank_zero():
        warnings.warn(describe_starved(found), Notice, stacklevel=3)


def describe_starved(found: Sequence[StarvedExperts]) -> str:
    """A sentence about the layers whose statistics were mixed; a layer may be in several items.

    Example:
        >>> describe_starved([StarvedExperts("h.0.experts", mixed=2, experts=8, width=64, fewest=5)]).partition(":")[0]
        "2 of 8 experts of 'h.0.experts' saw fewer tokens than the 64 rows or columns of their matrices (the fewest 5)"
    """
    most = max(found, key=lambda layer: layer.mixed)
    number = len({layer.path for layer in found}) - 1
    others = f", and experts of {number} other layer{'s' if number > 1 else ''} too" if number else ""
    return (
        f"{most.mixed} of {most.experts} experts of '{most.path}' saw fewer tokens than the {most.width} rows or "
        f"columns of their matrices (the fewest {most.fewest}){others}: their statistics are mixed with those of the "
        "whole layer; more calibration rows give them their own."
    )


def _starved(layer: ExpertRecorder, width: int) -> list[int]:
    """The numbers of the experts that saw fewer tokens than `width`."""
    return (layer.rows < width).nonzero().flatten().tolist()


def _axis(recorder: StackRecorder, kind: type[Statistic]) -> int:
    """The number of rows or columns that a statistic measures; 0 if it is never mixed, like those of plug-ins."""
    out_features, in_features = recorder.stack.shape
    if kind is GradCovariance:
        return out_features
    return in_features if kind in (Fisher, AbsMax, *MEANS) else 0


@torch.no_grad()
def shrink_starved(layer: ExpertRecorder) -> StarvedExperts | None:
    """Mix the statistics of experts with few tokens with shared ones, in place; to be called once, after `gather`.

    Args:
        layer: the statistics of the experts of one layer.

    Returns:
        The experts whose statistics were mixed; None if there are none.
    """
    for recorder in layer.stacks.values():
        for statistic in () if layer.reads_own_channels(recorder) else recorder.inputs:
            shared, width = _pool_inputs(statistic), _axis(recorder, statistic.kind)
            for expert in _starved(layer, width):
                _shrink_inputs(statistic, expert, shared, int(layer.rows[expert]), width)
        for statistic in recorder.gradients:
            _shrink_gradients(layer, recorder, statistic)
    responding = [recorder for recorder in layer.stacks.values() if layer.reads_own_channels(recorder)]
    for expert in _starved(layer, max((recorder.stack.in_features for recorder in responding), default=0)):
        _shrink_to_response(layer, responding, expert)
    widths = [
        _axis(recorder, statistic.kind)
        for recorder in layer.stacks.values()
        for statistic in (*recorder.inputs, *recorder.gradients)
    ]
    width = max(widths, default=0)
    mixed = len(_starved(layer, width))
    return StarvedExperts(layer.path, mixed, len(layer.rows), width, int(layer.rows.min())) if mixed else None


def _pool_inputs(statistic: StackStatistic) -> Tensor:
    return statistic.totals.amax(0) if statistic.kind is AbsMax else pool_moments(statistic.totals, statistic.counts)


def _shrink_inputs(statistic: StackStatistic, expert: int, shared: Tensor, rows: int, width: int) -> None:
    """Mix a statistic of the inputs of one expert, which saw `rows` tokens, with `width` tokens of the shared mean."""
    total = statistic.totals[expert]
    if statistic.kind is AbsMax:
        torch.maximum(total, shared, out=total)
    else:
        count = statistic.counts[expert].item() or 1.0
        statistic.counts[expert] = count
        total.copy_(count * shrink_towards(total / count, shared, rows, width))


def _shrink_to_response(layer: ExpertRecorder, recorders: Sequence[StackRecorder], expert: int) -> None:
    """Mix the statistics of the inputs of one expert with those of its response to the sample of the layer's inputs."""
    assert layer.sample is not None
    rows = int(layer.rows[expert])
    for recorder, x in zip(recorders, _respond(layer, recorders, expert), strict=True):
        for statistic in recorder.inputs:
            width = _axis(recorder, statistic.kind)
            if rows >= width:
                continue
            assert issubclass(statistic.kind, InputStatistic)
            response = statistic.kind.empty(recorder.stack.in_features, False, x.device)
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
    width = _axis(recorder, statistic.kind)
    if not width:
        return
    shared = pool_moments(statistic.totals, layer.rows)
    is_last = recorder.stack is layer.last
    if statistic.kind is Fisher:
        # The mean over the axes that are channels of an expert.
        channels = [0] if recorder.stack in layer.read_input else [1] if is_last else [0, 1]
        shared = shared.mean(channels, keepdim=True).expand_as(shared)
    elif not is_last:
        shared = isotropic_moments(shared)
    for expert in _starved(layer, width):
        rows = max(int(layer.rows[expert]), 1)
        mean = shrink_towards(statistic.totals[expert] / rows, shared, int(layer.rows[expert]), width)
        statistic.totals[expert] = rows * mean
