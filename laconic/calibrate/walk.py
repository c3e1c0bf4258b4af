"""What is known of each matrix, block by block: later blocks see the errors of those already replaced.

Each block is run on its own, on inputs cached for one block at a time. What a block receives besides hidden states
(masks, position embeddings, T5's position bias) does not depend on the linears, so it is captured once per stack.
Gradients are those of the model before the walk began: the Fisher information belongs to the dense model.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.known import Known
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.statistics import GradientStatistic, InputStatistic, Statistic
from laconic.calibrate.survey import survey
from laconic.model import Batch, Group, LanguageModel, Site, predict


@dataclass
class _Call:
    """The arguments of one block for one batch; the hidden states are kept apart because they change."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        if "hidden_states" in self.kwargs:
            output = block(*self.args, **{**self.kwargs, "hidden_states": hidden})
        else:
            output = block(hidden, *self.args[1:], **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


def walk(
    lm: LanguageModel, data: Calibration, needs: Collection[type[Statistic]], sites: Sequence[Site]
) -> Iterator[list[tuple[Site, Known]]]:
    """Yield the sites of each block with what is known of them, in forward order; embeddings first, heads last.

    The caller may replace the sites it was given before it asks for the next block.
    """
    gradient_kinds = {kind for kind in needs if issubclass(kind, GradientStatistic)}
    input_kinds = {kind for kind in needs if issubclass(kind, InputStatistic)}
    gradients = survey(lm, data, gradient_kinds, sites)

    def joined(measured: dict[str, Known], here: Sequence[Site]) -> list[tuple[Site, Known]]:
        return [(site, gradients[site.name] | measured[site.name]) for site in here]

    first = [site for site in sites if site.group is Group.EMBEDDING]
    last = [site for site in sites if site.group is Group.HEAD]
    if first:
        yield joined(survey(lm, data, input_kinds, first), first)
    for measured, here in _walk_blocks(lm, data, input_kinds, sites):
        yield joined(measured, here)
    if last:
        yield joined(survey(lm, data, input_kinds, last), last)


def _walk_blocks(
    lm: LanguageModel, data: Calibration, kinds: Collection[type[Statistic]], sites: Sequence[Site]
) -> Iterator[tuple[dict[str, Known], list[Site]]]:
    batches = [{name: tensor.to(lm.device) for name, tensor in batch.items()} for batch in data.batches]
    for stack, blocks in lm.stacks():
        captured = [_capture(lm, [block for _, block in blocks], batch) for batch in batches]
        hidden = [states for states, _ in captured]
        for index in data.track(range(len(blocks)), f"Walking the {stack.blocks}"):
            path, block = blocks[index]
            calls = [of_block[index] for _, of_block in captured]
            here = [site for site in sites if site.block == path]
            if here:
                with Recorder(lm, here, kinds) as recorder:
                    _run(block, calls, hidden, recorder, batches)
                yield recorder.known(), here
            hidden = _run(block, calls, hidden, None, batches)


def _run(
    block: nn.Module, calls: list[_Call], hidden: list[Tensor], recorder: Recorder | None, batches: list[Batch]
) -> list[Tensor]:
    outputs = []
    with torch.no_grad():
        for call, states, batch in zip(calls, hidden, batches, strict=True):
            if recorder is not None:
                recorder.batch = batch
            outputs.append(call.run(block, states))
    return outputs


def _capture(lm: LanguageModel, blocks: list[nn.Module], batch: Batch) -> tuple[Tensor, list[_Call]]:
    """The hidden states that enter the first block, and how each block is called."""
    calls: list[_Call] = []
    entering: list[Tensor] = []

    def on_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if not entering:
            entering.append(hidden)
        # Only the first block's states are kept: the others are recomputed from it. A cache would remember the
        # keys of the first run and see every token twice in the second.
        kept = {name: None if isinstance(value, Cache) or value is hidden else value for name, value in kwargs.items()}
        calls.append(_Call(tuple(None if isinstance(a, Cache) or a is hidden else a for a in args), kept))

    with ExitStack() as hooks, torch.no_grad():
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(on_call, with_kwargs=True).remove)
        predict(lm, batch)
    return entering[0], calls
