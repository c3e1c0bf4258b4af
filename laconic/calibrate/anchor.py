"""Fit a layer to the outputs of the dense model, given the inputs that the partly compressed model produces.

Let x̃ be the inputs of the layer in the partly compressed model, and y* the outputs of the same layer in the dense
model, on the same tokens. The least squares solution is

    W* = (D + λ W)(C + λ I)^{-1},   C = Cov(x̃),   D = Cov(y*, x̃)

and ‖Y* − Ŵ X̃‖² = const + ‖(W* − Ŵ) C^{1/2}‖². A method therefore approximates W* under C, the same kind of problem as
approximating W, and the errors of earlier layers are taken into account (AA-SVD, arXiv 2604.02119; GPTAQ, arXiv
2504.02692). If the layer has no bias to adjust, C and D are the uncentred moments. The ridge λ keeps W* close to W when
there are too few tokens for a reliable fit. It is chosen by two-fold cross-validation over the batches, starting from a
large λ; if no λ beats W itself, W* = W.

The functions at the end split calibration rows: into folds, and into rows to fit on and rows held out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats, Means, Problem
from laconic.calibrate.statistics import InputCovariance
from laconic.errors import UserError
from laconic.model import Batch
from laconic.numerics.gram import add_gram, symmetrize
from laconic.numerics.moments import check_finite, root_factor

RIDGES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
"""Candidates for λ, as multiples of the mean of C's diagonal."""
FOLDS = 2


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's inputs x̃ and of the outputs y* to reach.

    Args:
        x: mean of x̃, (in,).
        y: mean of y*, (out,).
        C: second moment of x̃, (in, in); centred (a covariance) if the bias may be adjusted, else uncentred.
        D: cross moment of y* and x̃, (out, in); centred like C.
        count: number of tokens.
    """

    x: Float[Tensor, " in"]
    y: Float[Tensor, " out"]
    C: Float[Tensor, "in in"]
    D: Float[Tensor, "out in"]
    count: int


class _Sums:
    """Sums over the tokens of one fold: of x̃, which several layers share, and of y* and y* x̃^T for each layer."""

    def __init__(self, in_features: int, outputs: Mapping[str, int], device: torch.device) -> None:
        zeros = torch.zeros(in_features, in_features, dtype=torch.float64, device=device)
        self.count, self.x, self.gram = 0, zeros.new_zeros(in_features), zeros
        self.y = {name: zeros.new_zeros(size) for name, size in outputs.items()}
        self.products = {name: zeros.new_zeros(size, in_features) for name, size in outputs.items()}


class Anchor:
    """Collects the moments of x̃ and y* for all layers that read the same input, and poses their problems.

    Args:
        in_features: width of the shared input.
        outputs: number of outputs of each layer, by layer name.
        device: where the sums are kept, in fp64.
    """

    def __init__(self, in_features: int, outputs: Mapping[str, int], device: torch.device) -> None:
        self._folds = [_Sums(in_features, outputs, device) for _ in range(FOLDS)]

    def update(
        self, number: int, x: Float[Tensor, "tokens in"], outputs: Mapping[str, Float[Tensor, "tokens out"]]
    ) -> None:
        """Add the tokens of one call.

        Args:
            number: number of the batch, which decides the cross-validation fold.
            x: the inputs in the partly compressed model, (tokens, in).
            outputs: outputs to reach, (tokens, out), by layer name.
        """
        fold = self._folds[number % FOLDS]
        fold.count += len(x)
        fold.x += x.sum(0, dtype=torch.float64)
        add_gram(fold.gram, x)
        for name, y in outputs.items():
            fold.y[name] += y.sum(0, dtype=torch.float64)
            fold.products[name] += y.T @ x

    def moments(self, site: str, centred: bool) -> tuple[Moments, list[Moments]]:
        """Return the moments of the layer `site`.

        Args:
            site: name of the layer.
            centred: subtract the means from C and D.

        Returns:
            The moments over all tokens, and those of each cross-validation fold that has any tokens.

        Raises:
            UserError: inputs or outputs are not finite.
        """
        whole = _compute_moments(self._folds, site, centred)
        check_finite(
            whole.C.sum() + whole.D.sum(),
            f"The inputs or outputs of '{site}' are not finite; check the model and the data.",
        )
        return whole, [_compute_moments([fold], site, centred) for fold in self._folds if fold.count]

    def problem(self, site: str, W: Float[Tensor, "out in"], stats: LayerStats, centred: bool) -> Problem:
        """Pose the problem for one layer: approximate W* instead of W.

        Args:
            site: name of the layer.
            W: its present matrix, (out, in).
            stats: its other statistics.
            centred: True if the layer's bias may be adjusted; the problem then has `means`.

        Returns:
            The problem with W* as its weight and C as its `InputCovariance`.

        Raises:
            UserError: inputs or outputs are not finite.
        """
        whole, folds = self.moments(site, centred)
        ridge = choose_ridge(W.double(), folds)
        target = W if ridge is None else solve_anchored(W.double(), whole, ridge).to(W.dtype)
        gram = InputCovariance.from_moment(whole.C, whole.count)
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


def solve_anchored(W: Float[Tensor, "out in"], moments: Moments, ridge: float) -> Float[Tensor, "out in"]:
    """Return W* = (D + λ W)(C + λ I)^{-1} with λ = ridge · mean(diag C), or W itself if all inputs are zero.

    Args:
        W: the present matrix, (out, in), in float64.
        moments: moments of inputs and target outputs.
        ridge: λ relative to the mean of C's diagonal, above 0.
    """
    level = ridge * moments.C.diagonal().mean()
    if level <= 0:
        return W
    regular = moments.C + level * torch.eye(len(moments.C), dtype=W.dtype, device=W.device)
    return torch.cholesky_solve((moments.D + level * W).T, root_factor(regular)).T


def choose_ridge(W: Float[Tensor, "out in"], folds: Sequence[Moments]) -> float | None:
    """Choose a ridge from `RIDGES` by two-fold cross-validation.

    The search goes from the largest ridge down and stops at the first that does not lower the error.

    Args:
        W: the present matrix, (out, in).
        folds: moments of each fold.

    Returns:
        The ridge, or None if no W* beats W on the other fold or if there are fewer than two folds.
    """
    if len(folds) < FOLDS:
        return None
    best, least = None, sum(squared_error(W, fold) for fold in folds)
    for ridge in RIDGES:
        error = sum(
            squared_error(solve_anchored(W, fold, ridge), other)
            for fold, other in zip(folds, reversed(folds), strict=True)
        )
        if not error < least:
            break
        best, least = ridge, error
    return best


def squared_error(W: Float[Tensor, "out in"], moments: Moments) -> float:
    """Return E‖y* − W x̃‖² up to a constant that does not depend on W: tr(W C W^T) − 2 tr(W D^T).

    Args:
        W: a matrix, (out, in), in float64.
        moments: moments of inputs and target outputs.
    """
    return (W * (W @ moments.C - 2 * moments.D)).sum().item()


def split_held_out(batches: Sequence[Batch], held_out: float, seed: int, step: str) -> tuple[list[Batch], list[Batch]]:
    """Split rows into those to fit on and those held out.

    Args:
        batches: the rows.
        held_out: fraction of the rows to hold out; at least one row is held out.
        seed: seed of the split.
        step: name of the step, for the error.

    Returns:
        The batches to fit on, at least as many as cross-validation has folds, and the held-out batches.

    Raises:
        UserError: there are too few rows.
    """
    count_held_out = held_out_count(batches, held_out, step)
    sizes = [len(batch["input_ids"]) for batch in batches]
    count = sum(sizes)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    is_held_out = torch.zeros(count, dtype=torch.bool)
    is_held_out[order[:count_held_out]] = True
    masks = is_held_out.split(sizes)
    return split_for_folds(list(_rows(batches, [~mask for mask in masks]))), list(_rows(batches, masks))


def split_for_folds(batches: list[Batch]) -> list[Batch]:
    """Return the same rows in at least one batch per cross-validation fold, if there are enough rows."""
    if len(batches) >= FOLDS:
        return batches
    (batch,) = batches
    rows = torch.arange(len(batch["input_ids"]))
    folds = [rows % FOLDS == fold for fold in range(FOLDS)]
    return [{name: tensor[mask] for name, tensor in batch.items()} for mask in folds if mask.any()]


def held_out_count(batches: Sequence[Batch], held_out: float, step: str) -> int:
    """Return the number of rows to hold out, at least one.

    Args:
        batches: the rows.
        held_out: fraction of the rows to hold out.
        step: name of the step, for the error.

    Raises:
        UserError: too few rows would be left to fit on.
    """
    count = count_rows(batches)
    held_out_rows = max(1, round(held_out * count))
    if count - held_out_rows < FOLDS:
        raise UserError(f"The step '{step}' needs at least {FOLDS + 1} rows of data, some held out; got {count}.")
    return held_out_rows


def count_rows(batches: Sequence[Batch]) -> int:
    """The number of rows of all batches."""
    return sum(len(batch["input_ids"]) for batch in batches)


def _rows(batches: Sequence[Batch], masks: Sequence[torch.Tensor]) -> Iterator[Batch]:
    for batch, mask in zip(batches, masks, strict=True):
        if mask.any():
            yield {name: tensor[mask] for name, tensor in batch.items()}
