"""The matrix that best brings the outputs of a layer back to those of the dense model, from inputs that have drifted.

With x̃ the inputs as they are now and y* the outputs to be reached, over the same tokens,

    W* = (D + λ W)(C + λ I)^{-1},   C = Cov(x̃),   D = Cov(y*, x̃)

and ‖Y* − Ŵ X̃‖² = const + ‖(W* − Ŵ) C^{1/2}‖², so approximating W* under C is the same problem as before, with the
errors of earlier layers in it (AA-SVD, arXiv 2604.02119; GPTAQ, arXiv 2504.02692). Where the bias may not move, C and D
are the uncentred moments. λ holds W* to W where the tokens are too few to tell: it is chosen by cross-validation over
two halves of the batches, from no trust in them at all (W* = W) up.

How far the residual stream has drifted where a layer writes to it: what that layer's output should make up for.

A block adds the outputs of its writers (the output projections) to the stream. Before the first of them the stream is
the block's input; before a later one it is, with normalisation inside the sublayers (pre-LN), the sum so far, and with
normalisation between them (post-LN), what the sublayer reads. Which of the two a block is shows in its own numbers; one
that is neither (a norm on the way out of a sublayer) is left alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate.activation_capture import ActivationCapture
from laconic.calibrate.layer_stats import LayerStats, Means, Problem
from laconic.calibrate.statistics import InputCovariance
from laconic.errors import UserError
from laconic.model import Stack
from laconic.numerics.moments import add_gram, root_factor, symmetrize

RIDGES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
"""λ as multiples of the mean of C's diagonal."""
FOLDS = 2


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's inputs x̃ and of the outputs y* to reach.

    Args:
        x: mean inputs, (in,).
        y: mean outputs, (out,).
        C: (in, in), of the inputs; centred, or not where the bias may not move.
        D: (out, in), of outputs with inputs.
        count: number of tokens.
    """

    x: Float[Tensor, " in"]
    y: Float[Tensor, " out"]
    C: Float[Tensor, "in in"]
    D: Float[Tensor, "out in"]
    count: int


class _Sums:
    """Over the tokens of one fold: of the inputs, which several sites share, and of each site's wanted outputs."""

    def __init__(self, in_features: int, outputs: Mapping[str, int], device: torch.device) -> None:
        zeros = torch.zeros(in_features, in_features, dtype=torch.float64, device=device)
        self.count, self.x, self.gram = 0, zeros.new_zeros(in_features), zeros
        self.y = {name: zeros.new_zeros(size) for name, size in outputs.items()}
        self.products = {name: zeros.new_zeros(size, in_features) for name, size in outputs.items()}


class Anchor:
    """Sums for the layers that read one input: of the present inputs, and of the outputs that each layer should have.

    Args:
        in_features: width of the input.
        outputs: number of outputs by layer name.
        device: where the sums are kept.
    """

    def __init__(self, in_features: int, outputs: Mapping[str, int], device: torch.device) -> None:
        self._folds = [_Sums(in_features, outputs, device) for _ in range(FOLDS)]

    def update(
        self, number: int, x: Float[Tensor, "tokens in"], wanted: Mapping[str, Float[Tensor, "tokens out"]]
    ) -> None:
        """Add the tokens of a call in batch `number`: drifted inputs, and the outputs wanted of each site."""
        fold = self._folds[number % FOLDS]
        fold.count += len(x)
        fold.x += x.sum(0, dtype=torch.float64)
        add_gram(fold.gram, x)
        for name, y in wanted.items():
            fold.y[name] += y.sum(0, dtype=torch.float64)
            fold.products[name] += y.T @ x

    def moments(self, site: str, centred: bool) -> tuple[Moments, list[Moments]]:
        """The moments of `site` over all tokens, and over those of each fold that has some.

        Raises:
            UserError: inputs or outputs are not finite.
        """
        whole = _compute_moments(self._folds, site, centred)
        if not torch.isfinite(whole.C.sum() + whole.D.sum()):
            raise UserError(f"The inputs or outputs of '{site}' are not finite; check the model and the data.")
        return whole, [_compute_moments([fold], site, centred) for fold in self._folds if fold.count]

    def problem(self, site: str, W: Float[Tensor, "out in"], stats: LayerStats, centred: bool) -> Problem:
        """The problem of a layer whose matrix is W.

        Args:
            site: name of the layer.
            W: its matrix.
            stats: its other statistics.
            centred: the bias may move.

        Raises:
            UserError: inputs or outputs are not finite.
        """
        whole, folds = self.moments(site, centred)
        ridge = choose_ridge(W.double(), folds)
        target = W if ridge is None else wanted(W.double(), whole, ridge).to(W.dtype)
        gram = InputCovariance.of(whole.C, whole.count)
        return Problem(
            weight=target, stats=stats | LayerStats([gram]), means=Means(whole.x, whole.y) if centred else None
        )


def _compute_moments(folds: Sequence[_Sums], site: str, centred: bool) -> Moments:
    count = max(sum(fold.count for fold in folds), 1)
    x = sum((fold.x for fold in folds), torch.zeros_like(folds[0].x)) / count
    y = sum((fold.y[site] for fold in folds), torch.zeros_like(folds[0].y[site])) / count
    C = symmetrize(sum((fold.gram for fold in folds), torch.zeros_like(folds[0].gram))) / count
    D = sum((fold.products[site] for fold in folds), torch.zeros_like(folds[0].products[site])) / count
    if centred:
        C, D = C - torch.outer(x, x), D - torch.outer(y, x)
    return Moments(x, y, C, D, count)


def wanted(W: Float[Tensor, "out in"], moments: Moments, ridge: float) -> Float[Tensor, "out in"]:
    """W* = (D + λ W)(C + λ I)^{-1}, λ = ridge · mean(diag C); W itself if all inputs are zero."""
    level = ridge * moments.C.diagonal().mean()
    if level <= 0:
        return W
    regular = moments.C + level * torch.eye(len(moments.C), dtype=W.dtype, device=W.device)
    return torch.cholesky_solve((moments.D + level * W).T, root_factor(regular)).T


def choose_ridge(W: Float[Tensor, "out in"], folds: Sequence[Moments]) -> float | None:
    """The ridge whose W*, fitted on one fold, errs least on the other; None if W itself errs least."""
    if len(folds) < FOLDS:
        return None
    best, least = None, sum(squared_error(W, fold) for fold in folds)
    for ridge in RIDGES:
        error = sum(
            squared_error(wanted(W, fold, ridge), other) for fold, other in zip(folds, reversed(folds), strict=True)
        )
        if not error < least:
            break
        best, least = ridge, error
    return best


def squared_error(W: Float[Tensor, "out in"], moments: Moments) -> float:
    """E‖y* − W x̃‖² less a constant: tr(W C W^T) − 2 tr(W D^T)."""
    return (W * (W @ moments.C - 2 * moments.D)).sum().item()


TOLERANCE = 1e-3


class Residual(Enum):
    """Where the residual stream before a writer can be read."""

    SUM = "the block's input and the outputs written so far"
    READ = "what the sublayer reads"
    UNKNOWN = "not told"


@dataclass(frozen=True)
class Sublayer:
    """The paths of the first projection that reads the residual stream and of the one that writes to it."""

    reader: str
    writer: str


def find_sublayers(stack: Stack, block: str, exists: Callable[[str], bool]) -> list[Sublayer]:
    """The sublayers of one block that exist, in forward order."""
    ends = [(attention.query or attention.fused, attention.output) for attention in stack.attentions]
    ends += [(feed_forward.inner[0], feed_forward.output) for feed_forward in stack.feed_forward]
    paths = [(f"{block}.{reader}", f"{block}.{writer}") for reader, writer in ends if reader is not None]
    return [Sublayer(*pair) for pair in paths if all(exists(path) for path in pair)]


def captured_paths(block: str, parts: Sequence[Sublayer]) -> list[str]:
    """The paths of the modules to capture for `find_residual` and `residual_before`."""
    return [block, *(path for part in parts for path in (part.reader, part.writer))]


def find_residual(tap: ActivationCapture, block: str, parts: Sequence[Sublayer]) -> Residual:
    """How the residual stream of a captured block is made up."""
    entered, left = tap.inputs[block][0], tap.outputs[block][0]
    written = [tap.outputs[part.writer][0].reshape(entered.shape) for part in parts]
    if _same(sum(written, entered), left):
        return Residual.SUM
    return Residual.READ if parts and _same(tap.inputs[parts[0].reader][0], entered) else Residual.UNKNOWN


def residual_before(
    tap: ActivationCapture, block: str, parts: Sequence[Sublayer], writer: str, kind: Residual, call: int
) -> Tensor:
    """The residual stream that the output of `writer` was added to, in the shape of that output.

    Args:
        tap: the captured activations of the block.
        block: path of the block.
        parts: its sublayers.
        writer: path of the writer.
        kind: how the stream is made up.
        call: number of the call of the block.
    """
    index = next(i for i, part in enumerate(parts) if part.writer == writer)
    # OPT calls its feed-forward with sequences and tokens in one dimension.
    shape = tap.outputs[writer][call].shape
    if kind is Residual.READ:
        return tap.inputs[parts[index].reader][call].reshape(shape)
    written = [tap.outputs[part.writer][call].reshape(shape) for part in parts[:index]]
    return sum(written, tap.inputs[block][call].reshape(shape))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= TOLERANCE * b.norm())
