"""Evenly spaced values for the weights of a group: which spacing, and which of the values is nearest.

A weight w of a group with the scale s and the zero point z is kept as the code c in [0, 2^b), which stands for
s (c − z). An asymmetric grid chooses z among the codes. A symmetric one has z = 2^{b−1} everywhere, and as there is one
more code below than above, s may be negative. s is a number of 16 bits, as it will be stored.

The spacing is searched for: of ranges that cover the whole group down to a part of it, the one with the least error,
and then, its codes given, the s of least error. (Clipping by search: J. Lin et al., "AWQ", MLSys 2024, arXiv
2306.00978, section 5.1.) With e_j = w_j − s (c_j − z), the error is

    Σ h_j e_j²                                             where the importance h of the inputs is known,
    Σ h_j e_j² + (a − 1) (Σ h_j e_j w_j)² / Σ h_j w_j²,    where it is not and ranges are searched: a = 2, h_j = 1, but
                                                           with 2 bits h_j = |w_j| + the root mean square of the group.

With h = 1 the squares alone are what inputs cost that have the same second moment along every direction. They prefer to
clip, and what is clipped shrinks: its error lies along w. But a trained row lies where its inputs are active, so along
w they have a second moment a times that of others, and a matrix that shrinks as a whole answers as a whole with too
little. With 2 bits most of a range is clipped away, unless large weights count for more, as they do in llama.cpp's
format Q2_K, which takes h_j = |w_j|.

Where inputs are not known, a narrower range of 4 bits or more is taken only if it saves a share m of the whole range's
error, m = 0.3. What it saves is spread over many weights, what it costs falls on the largest few, and the inputs of
those are what nobody looked at. With 2 and 3 bits steps are so wide that what is saved outweighs that.

Notation: W (m, n); h importance, (n,) or (m, n); b bits; s, z (m, k), or (1, 1) where the whole matrix is one group.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn.functional import pad

LARGEST_SCALE = torch.finfo(torch.float16).max
STEP = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
"""Between the smallest numbers of 16 bits, which are multiples of it."""
FEW_STEPS = 16
CLIPS = tuple(1 - part / 20 for part in range(15))
"""The parts of a group's range that are tried: all of it down to three tenths."""
REFINEMENTS = 4
ALONG = 2.0
"""a: how much more inputs that are not known are taken to vary along the weights that read them than across."""
MARGIN = 0.3
"""m: the fraction of the full range's error that clipping must save, where inputs are unknown."""
MARGIN_BITS = 4
"""The least number of bits to which the margin m applies."""
WEIGHED_BITS = 2
"""The most bits with which h_j = |w_j| + the root mean square of the group."""
BLOCK = 2**22
"""Weights that are worked on at a time, which bounds the memory, but where one grid is for all of a matrix."""


class Spacing(NamedTuple):
    """What is asked of the grids of one matrix.

    group: columns of a row that share one, the last being fewer where they must; None for one grid in all.
    clip:  search for the range; otherwise it is all of the group's.
    """

    bits: int
    group: int | None
    symmetric: bool = False
    clip: bool = True


class Grid(NamedTuple):
    """The grids of one matrix: `group` columns of a row share one; where it is None all weights do, and s is (1, 1)."""

    scale: Float[Tensor, "rows groups"]
    zero: Float[Tensor, "rows groups"]
    bits: int
    group: int | None

    def columns(self, which: Integer[Tensor, " k"]) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows k"]]:
        """s and z of each of some columns; of one row where all rows have the same."""
        if self.group is None:
            return self.scale.expand(1, len(which)), self.zero.expand(1, len(which))
        groups = which // self.group
        return self.scale[:, groups], self.zero[:, groups]


def fit_grid(
    W: Float[Tensor, "out in"],
    spacing: Spacing,
    importance: Float[Tensor, "..."] | None = None,
    keep: Bool[Tensor, "out in"] | None = None,
) -> Grid:
    """The grids of W, in fp32.

    importance: h, of the columns or of every weight; None where nothing is known of the inputs.
    keep:       False where a weight is zero by choice, and takes no part.
    """
    W = W.float()
    # Without a search there is no part of the range to choose: what is tried then is the sign alone.
    along = ALONG if importance is None and spacing.clip else 1.0
    h = torch.ones_like(W)
    if importance is not None and importance.max() > 0:
        h = (importance / importance.max()).float().expand_as(W)
    if keep is not None:
        W, h = W * keep, h * keep
    group = spacing.group
    if group is None:
        scale, zero = _fit(W.reshape(1, -1), h.reshape(1, -1), spacing, along)
        return Grid(scale[:, None], zero[:, None], spacing.bits, None)
    groups = -(-W.shape[1] // group)
    short = groups * group - W.shape[1]
    rows = max(1, BLOCK // (groups * group))
    parts = []
    for start in range(0, len(W), rows):
        here = slice(start, start + rows)
        shaped = [pad(X[here], (0, short)).reshape(-1, group) for X in (W, h)]
        parts.append(_fit(shaped[0], shaped[1], spacing, along))
    scale, zero = (torch.cat(part).view(len(W), groups) for part in zip(*parts, strict=True))
    return Grid(scale, zero, spacing.bits, group)


def nearest(
    W: Float[Tensor, "out columns"],
    scale: Float[Tensor, "#out #columns"],
    zero: Float[Tensor, "#out #columns"],
    bits: int,
) -> Float[Tensor, "out columns"]:
    """The codes of the nearest values, as whole numbers in the dtype of W; z where the scale is zero."""
    inverse = torch.where(scale == 0, 0, 1 / scale)
    return (W * inverse + zero).round_().clamp_(0, 2**bits - 1)


def codes_of(W: Float[Tensor, "out in"], grid: Grid) -> Integer[Tensor, "out in"]:
    """The code of every weight, uint8."""
    every = torch.arange(W.shape[1], device=W.device)
    parts = [
        nearest(W[:, which].float(), *grid.columns(which), grid.bits).to(torch.uint8)
        for which in every.split(max(1, BLOCK // len(W)))
    ]
    return torch.cat(parts, 1)


def values_of(
    codes: Integer[Tensor, "out columns"], grid: Grid, columns: Integer[Tensor, " columns"] | None = None
) -> Float[Tensor, "out columns"]:
    """s (c − z) in fp32, which is exact for scales of 16 bits: of the whole matrix, or of these of its columns."""
    m, n = codes.shape
    if columns is None and grid.group is not None and n % grid.group == 0:
        grouped = codes.reshape(m, -1, grid.group) - grid.zero[..., None]
        return grouped.mul_(grid.scale[..., None]).view(m, n)
    scale, zero = grid.columns(torch.arange(n, device=codes.device) if columns is None else columns)
    return (codes - zero).mul_(scale)


def _fit(
    W: Tensor, h: Tensor, spacing: Spacing, along: float
) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]:
    """s and z of each row."""
    if along != 1 and spacing.bits <= WEIGHED_BITS:
        h = h * (W.abs() + ((h * W * W).sum(1, keepdim=True) / h.sum(1, keepdim=True).clamp(min=1)).sqrt())
    scale, zero = _searched(W, h, spacing, along)
    if along == 1 or spacing.bits < MARGIN_BITS:
        return scale, zero
    whole = _searched(W, h, spacing._replace(clip=False), 1.0)
    errors = [_error(W, h, *grid, spacing.bits, along) for grid in ((scale, zero), whole)]
    saved = errors[0] < (1 - MARGIN) * errors[1]
    return torch.where(saved, scale, whole[0]), torch.where(saved, zero, whole[1])


def _searched(
    W: Tensor, h: Tensor, spacing: Spacing, along: float
) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]:
    """Scale s and zero point z with the least error among the candidates."""
    bits = spacing.bits
    best_scale, best_zero = torch.zeros(len(W), device=W.device), torch.zeros(len(W), device=W.device)
    best = W.new_full((len(W),), torch.inf)
    for scale, zero in _candidates(W, spacing):
        error = _error(W, h, scale, zero, bits, along)
        better = error < best
        best = torch.where(better, error, best)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    for _ in range(REFINEMENTS if spacing.clip else 0):
        scale = _refined(W, h, best_scale, best_zero, bits, along)
        error = _error(W, h, scale, best_zero, bits, along)
        better = error < best
        best, best_scale = torch.where(better, error, best), torch.where(better, scale, best_scale)
    return best_scale, best_zero


def _refined(W: Tensor, h: Tensor, scale: Tensor, zero: Tensor, bits: int, along: float) -> Float[Tensor, " groups"]:
    """The s of least error for the codes that are nearest now."""
    steps = nearest(W, scale[:, None], zero[:, None], bits) - zero[:, None]
    weighted = h * steps
    norm, product = (weighted * steps).sum(1), (weighted * W).sum(1)
    if along != 1:
        # Where the slope of ‖w − s q‖² + (a − 1) (⟨w − s q, w⟩)² / ‖w‖² is 0.
        size = (h * W * W).sum(1).clamp(min=1e-30)
        norm, product = norm + (along - 1) * product.square() / size, along * product
    return _stored(torch.where(norm > 0, product / norm.clamp(min=1e-30), scale))


def _candidates(W: Tensor, spacing: Spacing) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and zero points of smaller and smaller ranges."""
    most, clips = 2**spacing.bits - 1, CLIPS if spacing.clip else CLIPS[:1]
    if spacing.symmetric:
        half = 2 ** (spacing.bits - 1)
        largest = W.abs().amax(1)
        zero = torch.full_like(largest, half)
        for clip in clips:
            # With 2^{b−1} − 1 both ends are within; with 2^{b−1} one of them, and the sign says which.
            for steps in (half - 1, half, -half):
                yield _stored(clip * largest / steps), zero
        return
    low, high = W.amin(1).clamp(max=0), W.amax(1).clamp(min=0)
    for clip in clips:
        scale = _stored(clip * (high - low) / most)
        yield scale, torch.where(scale > 0, (-clip * low / scale).round(), 0).clamp(0, most)


def _stored(scale: Tensor) -> Tensor:
    """As a number of 16 bits holds it; the tiniest are rounded up, as a scale that is too small, or 0, cuts weights."""
    held = scale.clamp(-LARGEST_SCALE, LARGEST_SCALE).half().float()
    short = (held.abs() < scale.abs()) & (scale.abs() < FEW_STEPS * STEP)
    return torch.where(short, held + scale.sign() * STEP, held)


def _error(W: Tensor, h: Tensor, scale: Tensor, zero: Tensor, bits: int, along: float) -> Float[Tensor, " groups"]:
    steps = nearest(W, scale[:, None], zero[:, None], bits) - zero[:, None]
    error = steps.mul_(scale[:, None]).sub_(W)
    squares = (h * error).mul_(error).sum(1)
    if along == 1:
        return squares
    shrunk = (h * error).mul_(W).sum(1).square() / (h * W * W).sum(1).clamp(min=1e-30)
    return squares + (along - 1) * shrunk
