"""The hidden states before and after the blocks of a model, or between the parts of its blocks.

A model in memory runs batch by batch. A streamed model runs block by block over all batches, and the hidden states that
are compared later are kept in files of its scratch folder.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import Calibration
from laconic.calibrate.activation_capture import TOLERANCE, ActivationCapture
from laconic.calibrate.block_pass import BlockwisePass
from laconic.calibrate.collation import to_device
from laconic.calibrate.passes import evaluating
from laconic.calibrate.spill import HiddenStates
from laconic.calibrate.token_rows import TokenRows, token_rows
from laconic.compress.depth.cuts import Cut
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, predict, token_masks
from laconic.model.depth import SubBlock, find_subblocks
from laconic.model.layers import Layers, find_layers

Points = list[Float[Tensor, "sequences tokens d"]]
"""The hidden states before each cut of a stack, in forward order, and after the last cut."""
LABEL = "Measuring the hidden states"


@dataclass(frozen=True)
class StatePair:
    """The hidden states of one batch before and after a run of consecutive cuts.

    Args:
        cut: the first cut of the run.
        before: the hidden states before it.
        after: the hidden states after the last cut of the run.
        rows: which of their rows are padding.
    """

    cut: Cut
    before: Float[Tensor, "sequences tokens d"]
    after: Float[Tensor, "sequences tokens d"]
    rows: TokenRows


def state_pairs(
    lm: LanguageModel, data: Calibration, cuts: Mapping[str, list[Cut]], length: int
) -> Iterator[StatePair]:
    """Yield the hidden states around every run of `length` consecutive cuts, for every batch of this process.

    For each run, the batches come in order.

    Args:
        lm: the model.
        data: calibration data.
        cuts: all cuts of each stack, in forward order.
        length: number of cuts of a run.

    Raises:
        UserError: the hidden states between the parts of a block cannot be found; or the model is streamed, and its
            blocks do not form a chain.
    """
    if lm.loans is not None:
        yield from _streamed_pairs(lm, data, cuts, length)
        return
    for batch, _ in data.share(LABEL):
        for stack, (points, rows) in stack_hidden_states(lm, batch, cuts).items():
            for cut, before, after in zip(cuts[stack], points, points[length:], strict=False):
                yield StatePair(cut, before, after, rows)


@torch.no_grad()
def _streamed_pairs(
    lm: LanguageModel, data: Calibration, cuts: Mapping[str, list[Cut]], length: int
) -> Iterator[StatePair]:
    with evaluating(lm):
        run = BlockwisePass(lm, data, (), (), writes=False)
        remaining = {stack for stack, row in cuts.items() if row}
        for layers in find_layers(lm):
            if remaining:
                yield from _stack_pairs(run, layers, cuts.get(layers.name, []), length)
            remaining.discard(layers.name)
        run.stream.delete_states()


def _stack_pairs(run: BlockwisePass, layers: Layers, cuts: Sequence[Cut], length: int) -> Iterator[StatePair]:
    """Run one stack of a streamed model block by block; points that no later run of cuts needs are deleted."""
    lm, stream, points = run.lm, run.stream, list[HiddenStates]()
    by_parts = any(cut.part is not None for cut in cuts)
    run.enter(layers.paths)
    for number, path in enumerate(run.data.track(layers.paths, LABEL)):
        parts = find_subblocks(lm, layers, number) if by_parts else None
        count = sum(cut.layer == number for cut in cuts) + (number + 1 == len(layers))
        own = [stream.new_states(f"{path}.point.{place}") for place in range(count)]
        first, states = len(points), stream.next_states()
        points += own
        with lm.on_loan(path):
            for at, batch in enumerate(run.batches):
                with ActivationCapture(lm.model, dict.fromkeys((path, *_paths_of(parts or ())))) as capture:
                    stream.run_once(at, states)
                found = [*_block_points(capture, path, parts), capture.outputs[path][0]]
                rows = stack_rows(lm, batch, layers, found[0])
                for kept, point in zip(own, found, strict=False):
                    kept.append(rows.lines(point))
                for place in range(max(first, length), len(points)):
                    before, after = points[place - length][at], points[place][at]
                    yield StatePair(cuts[place - length], before, after, rows)
        stream.move_to(states)
        for past in points[: max(len(points) - length, 0)]:
            past.delete()
    for states in points:
        states.delete()


@torch.no_grad()
def stack_hidden_states(
    lm: LanguageModel, batch: Batch, cuts: Mapping[str, list[Cut]]
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
    paths += [path for rows in parts.values() for row in rows for path in _paths_of(row)]
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
        points[-1:] = _block_points(capture, path, None if parts is None else parts[number], calls[path])
        points.append(capture.outputs[path][calls[path]])
        calls[path] += 1
    return points


def _block_points(capture: ActivationCapture, path: str, parts: Sequence[SubBlock] | None, call: int = 0) -> Points:
    """The hidden states before a block, or before each sub-block of it."""
    h_in, h_out = capture.inputs[path][call], capture.outputs[path][call]
    return [h_in] if parts is None else _subblock_points(capture, h_in, h_out, parts)


def _paths_of(parts: Sequence[SubBlock]) -> list[str]:
    """The modules whose activations show the hidden states between sub-blocks."""
    return [path for part in parts for path in (part.inner[0], part.writer)]


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
