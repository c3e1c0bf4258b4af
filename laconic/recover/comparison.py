"""Run the compressed model and the original in parallel, and collect inputs and target outputs of each layer.

The target of a layer is the output of the same layer in the original. For a layer that writes to the residual stream,
the target also compensates for the drift of the stream before it and, if the blocks after its own were dropped, for the
missing outputs of these blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laconic.calibrate import Calibration
from laconic.calibrate.activation_capture import (
    ActivationCapture,
    Residual,
    find_residual,
    paths_to_capture,
    residual_before,
)
from laconic.calibrate.anchor import Anchor
from laconic.calibrate.collation import to_device
from laconic.calibrate.stream import STATES, Stream, chain_error
from laconic.calibrate.token_rows import TokenRows, token_rows
from laconic.model import Batch, LanguageModel, token_masks
from laconic.recover.layer_pairs import Pair, Piece, head_piece, pair_stacks, shape_of

KEPT_NUMBERS = 2**26
"""Largest number of activations of the original that are cached for one block (256 MiB in fp32)."""

LEAST_GAIN = 0.1
"""Smallest gain of a norm's channel that `invert_norm` divides by, relative to the mean gain."""

Step = tuple[list[Pair], Anchor]


class ModelPair:
    """A compressed model and its original, run side by side over the calibration batches.

    Args:
        lm: the compressed model, in eval mode.
        original: the original, in eval mode.
        data: calibration data.
    """

    def __init__(self, lm: LanguageModel, original: LanguageModel, data: Calibration) -> None:
        self.lm, self.original, self.track = lm, original, data.track
        self.batches = [to_device(batch, lm.device) for batch in data.batches]
        replays = lm.loans is not None
        self.stream = Stream(lm, self.batches, replays=replays)
        self.original_stream = Stream(original, self.batches, replays=replays, folder=f"{STATES}.original")
        self._kept: dict[int, ActivationCapture] = {}

    def steps(self) -> Iterator[Step]:
        """Yield the layers that share an input, with their moments, in forward order.

        The caller may change the layers before it asks for the next ones, which are then measured on the changed model.
        """
        for row in pair_stacks(self.lm, self.original):
            entered = [self.stream.enter(row.blocks)]
            entered.append(self.original_stream.enter(row.original_blocks))
            if not all(entered) and self.lm.loans is not None:
                raise chain_error("corrected", row.blocks)
            if not all(entered):
                # The blocks do not form a chain, so run the whole models and compare them call by call.
                if len(row.blocks) == len(row.original_blocks):
                    for piece in row.pieces:
                        yield from self._compare(Piece(piece.steps))
                continue
            position = 0
            # The track finds the path of the block in each item.
            pairs = list(zip(row.blocks, row.pieces, row.numbers, strict=True))
            for path, piece, number in self.track(pairs, "Correcting the blocks"):
                for _ in range(number - position):
                    self.original_stream.advance()
                position = number
                replaced = row.original_blocks[number : number + piece.spans]
                with self.lm.on_loan(path), self.original.on_loan(*replaced):
                    yield from self._compare(piece)
                    self.lm.write_back(path)
                    self.stream.advance()
            # A stack that has run to its end is not run again for what follows it.
            for _ in range(len(row.original_blocks) - position if self.lm.loans is not None else 0):
                self.original_stream.advance()
        yield from self._compare_heads()

    def delete_states(self) -> None:
        """Delete the hidden states of a streamed model, also those of an earlier run."""
        for stream in (self.stream, self.original_stream):
            stream.delete_states()

    def _compare_heads(self) -> Iterator[Step]:
        """Compare the layers after the blocks."""
        piece = head_piece(self.lm, self.original)
        pairs = [pair for step in piece.steps for pair in step]
        if not pairs:
            return
        with (
            self.lm.on_loan(*(pair.name for pair in pairs)),
            self.original.on_loan(*(pair.original for pair in pairs)),
            self.lm.loaned_on_call(keep=True),
            self.original.loaned_on_call(keep=True),
        ):
            yield from self._compare(piece)
            for pair in pairs:
                self.lm.write_back(pair.name)

    def _compare(self, piece: Piece) -> Iterator[Step]:
        residual = Residual.UNKNOWN
        if piece.original is not None:
            with ActivationCapture(self.original.model, paths_to_capture(piece.original, piece.origins)) as tap:
                self.original_stream.run(0)
            residual = find_residual(tap, piece.original, piece.origins)
        self._kept.clear()
        for pairs in piece.steps:
            fitting = [pair for pair in pairs if self._has_same_outputs(pair)]
            if fitting:
                yield fitting, self._measure(piece, residual, fitting)
        if piece.norm is not None and residual is Residual.READ:
            yield [piece.norm], self._measure_norm(piece, piece.norm)

    def _has_same_outputs(self, pair: Pair) -> bool:
        """Whether the layer has as many outputs as in the original; pruned heads or channels reduce them."""
        return out_features(self.lm.model.get_submodule(pair.name)) == out_features(
            self.original.model.get_submodule(pair.original)
        )

    @torch.no_grad()
    def _measure(self, piece: Piece, residual: Residual, pairs: list[Pair]) -> Anchor:
        follows = piece.block is not None and piece.original is not None and residual is not Residual.UNKNOWN
        paths = [pair.name for pair in pairs] + (paths_to_capture(str(piece.block), piece.parts) if follows else [])
        anchor: Anchor | None = None
        for number, batch in enumerate(self.batches):
            with ActivationCapture(self.lm.model, paths) as compressed:
                _run(self.stream, piece, number)
            original = self._run_original(piece, number)
            after = self.original_stream.run(number, piece.spans) if piece.spans > 1 else None
            for call, x in enumerate(compressed.inputs[pairs[0].name]):
                rows = self._rows(batch, pairs[0], call, x)
                outputs = _Outputs(compressed, original, call, after)
                targets = {pair.name: original.outputs[pair.original][call] for pair in pairs}
                if follows:
                    targets = {name: _target_output(piece, residual, outputs, name, y) for name, y in targets.items()}
                if anchor is None:
                    sizes = {name: y.shape[-1] for name, y in targets.items()}
                    anchor = Anchor(x.shape[-1], sizes, self.lm.device)
                lines = {name: rows.without_padding(rows.lines(y)) for name, y in targets.items()}
                anchor.update(number, rows.without_padding(rows.lines(x)), lines)
        assert anchor is not None
        return anchor

    @torch.no_grad()
    def _measure_norm(self, piece: Piece, norm: Pair) -> Anchor:
        """Collect the outputs of the norm that ends a block (post-LN), and the original's stream at that place."""
        features = self.lm.model.get_submodule(norm.name).get_parameter("weight").numel()
        anchor = Anchor(features, {norm.name: features}, self.lm.device)
        for number, batch in enumerate(self.batches):
            outputs, targets = self.stream.run(number), self.original_stream.run(number, piece.spans)
            rows = self._rows(batch, norm, 0, outputs)
            anchor.update(
                number,
                rows.without_padding(rows.lines(outputs)),
                {norm.name: rows.without_padding(rows.lines(targets))},
            )
        return anchor

    def _run_original(self, piece: Piece, number: int) -> ActivationCapture:
        """The activations of the original, which are the same for every step of `piece`."""
        if number in self._kept:
            return self._kept[number]
        paths = [pair.original for step in piece.steps for pair in step]
        if piece.original is not None:
            paths += paths_to_capture(piece.original, piece.origins)
        with ActivationCapture(self.original.model, dict.fromkeys(paths)) as tap:
            _run(self.original_stream, piece, number)
        if sum(map(_numbers, self._kept.values())) + _numbers(tap) <= KEPT_NUMBERS:
            self._kept[number] = tap
        return tap

    def _rows(self, batch: Batch, pair: Pair, call: int, x: Tensor) -> TokenRows:
        reads = pair.place.reads
        masks = token_masks(self.lm.task, batch)
        return token_rows(x.shape[:-1], reads[call % len(reads)], pair.place.tokens_first, *masks)


def _run(stream: Stream, piece: Piece, number: int) -> None:
    if piece.block is None and stream.lm.loans is not None:
        stream.run_end(number)
    elif piece.block is None:
        stream.run_whole(number)
    else:
        stream.run(number)


def _numbers(tap: ActivationCapture) -> int:
    """Number of captured elements; a tensor that was captured several times is counted each time."""
    tensor_lists = (*tap.inputs.values(), *tap.outputs.values())
    return sum(tensor.numel() for tensors in tensor_lists for tensor in tensors)


@dataclass(frozen=True)
class _Outputs:
    """One call of a block.

    Args:
        compressed: activations of the model.
        original: activations of the original.
        call: number of the call.
        after: the original's stream after the dropped blocks; None if none were dropped.
    """

    compressed: ActivationCapture
    original: ActivationCapture
    call: int
    after: Tensor | None


def _target_output(piece: Piece, residual: Residual, outputs: _Outputs, name: str, y: Tensor) -> Tensor:
    """The target output of the layer `name` that restores the original's residual stream; y if it writes to none."""
    index = next((index for index, part in enumerate(piece.parts) if part.writer == name), None)
    if index is None:
        return y
    before = residual_before(outputs.compressed, str(piece.block), piece.parts, name, residual, outputs.call)
    if outputs.after is not None and index == len(piece.parts) - 1:
        stream = outputs.after.reshape(before.shape)
        if residual is Residual.SUM:
            return stream - before
        if piece.norm is not None:
            return (
                invert_norm(piece.norm.place.module, stream, before + outputs.compressed.outputs[name][outputs.call])
                - before
            )
    origin = piece.origins[index].writer
    return (
        y
        + residual_before(outputs.original, str(piece.original), piece.origins, origin, residual, outputs.call)
        - before
    )


def invert_norm(norm: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """Invert a LayerNorm, with the mean and variance of a given input.

    Args:
        norm: the norm, with weight and bias.
        y: its target output, (…, d).
        x: an input whose mean and variance are used, (…, d).

    Returns:
        The input that gives y, (…, d). Very small gains are replaced by `LEAST_GAIN` of the mean gain.
    """
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    # The output of a channel with a very small gain hardly depends on its input.
    least = LEAST_GAIN * weight.abs().mean()
    gain = torch.where(weight < 0, -1.0, 1.0) * weight.abs().clamp(min=least)
    return x.std(-1, correction=0, keepdim=True) * (y - bias) / gain + x.mean(-1, keepdim=True)


def out_features(module: nn.Module) -> int:
    """Return the number of outputs of a plain or compressed linear layer."""
    return shape_of(module)[0]
