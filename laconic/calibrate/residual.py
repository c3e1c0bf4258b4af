"""How far the residual stream has drifted where a layer writes to it: what that layer's output should make up for.

A block adds the outputs of its writers (the output projections) to the stream. Before the first of them the stream is
the block's input; before a later one it is, with normalisation inside the sublayers (pre-LN), the sum so far, and with
normalisation between them (post-LN), what the sublayer reads. Which of the two a block is shows in its own numbers; one
that is neither (a norm on the way out of a sublayer) is left alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from laconic.calibrate.activation_capture import ActivationCapture
from laconic.model import Stack

TOLERANCE = 1e-3


class Residual(Enum):
    """What the residual stream is before a writer."""

    SUM = "the block's input and the outputs written so far"
    READ = "what the sublayer reads"
    UNKNOWN = "not told"


@dataclass(frozen=True)
class Sublayer:
    """Paths of the first projection that reads the stream and of the one that writes to it."""

    reader: str
    writer: str


def sublayers(stack: Stack, block: str, exists: Callable[[str], bool]) -> list[Sublayer]:
    """Those of one block that `exists`, in forward order."""
    ends = [(attention.query or attention.fused, attention.output) for attention in stack.attentions]
    ends += [(feed_forward.inner[0], feed_forward.output) for feed_forward in stack.feed_forward]
    paths = [(f"{block}.{reader}", f"{block}.{writer}") for reader, writer in ends if reader is not None]
    return [Sublayer(*pair) for pair in paths if all(exists(path) for path in pair)]


def paths_of(block: str, parts: Sequence[Sublayer]) -> list[str]:
    """What must be listened to."""
    return [block, *(path for part in parts for path in (part.reader, part.writer))]


def kind_of(tap: ActivationCapture, block: str, parts: Sequence[Sublayer]) -> Residual:
    """What the stream is in the block that `tap` has listened to."""
    entered, left = tap.inputs[block][0], tap.outputs[block][0]
    written = [tap.outputs[part.writer][0].reshape(entered.shape) for part in parts]
    if _same(sum(written, entered), left):
        return Residual.SUM
    return Residual.READ if parts and _same(tap.inputs[parts[0].reader][0], entered) else Residual.UNKNOWN


def stream_before(
    tap: ActivationCapture, block: str, parts: Sequence[Sublayer], writer: str, kind: Residual, call: int
) -> Tensor:
    """The residual stream that the output of `writer` was added to, in its call number `call`, and of its shape."""
    index = next(i for i, part in enumerate(parts) if part.writer == writer)
    # OPT calls its feed-forward with sequences and tokens in one dimension.
    shape = tap.outputs[writer][call].shape
    if kind is Residual.READ:
        return tap.inputs[parts[index].reader][call].reshape(shape)
    written = [tap.outputs[part.writer][call].reshape(shape) for part in parts[:index]]
    return sum(written, tap.inputs[block][call].reshape(shape))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= TOLERANCE * b.norm())
