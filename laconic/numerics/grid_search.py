"""The search for the scale and the zero point of each group of weights; `laconic.numerics.grid` has the equations.

Narrower and narrower ranges are tried, and then the best scale is refined. Errors are computed in units of a step, as e
= c − u for the code c nearest to u = w / s + z. Weights outside the range of the codes are off by more than half a
step. A narrower range holds at most one step more than this one at either end, so the sum of h (|e| − 1)₊² s² is a
lower bound of the errors of all narrower ranges. A group leaves the search when its best error is smaller.

Notation: W (k, g), k groups of g weights each; h importance of each weight; s, z (k,).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

LARGEST_SCALE = torch.finfo(torch.float16).max
STEP = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
"""The smallest positive number of 16 bits."""
FEW_STEPS = 16
CLIPS = tuple(1 - part / 20 for part in range(15))
"""The parts of a group's range that are tried: all of it down to three tenths."""
BOUNDED_FROM = 6
"""The number of the part from which on groups leave the search."""
REFINEMENTS = 4

Grids = tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]
"""The scale and the zero point of each group."""


class Groups(NamedTuple):
    """Groups of weights that are searched together.

    Args:
        W: the weights.
        h: their importance.
        size: Σ h w² of each group, at least a tiny number.
        along: a, the weight of errors along the weights of a group.
        work: memory for results, which each call uses again. New memory for each of them would take longer than the
            arithmetic.
    """

    W: Float[Tensor, "groups weights"]
    h: Float[Tensor, "groups weights"]
    size: Float[Tensor, " groups"]
    along: float
    work: Float[Tensor, "3 groups weights"]

    @classmethod
    def of(cls, W: Float[Tensor, "groups weights"], h: Float[Tensor, "groups weights"], along: float) -> "Groups":
        """The groups with these weights."""
        work = W.new_empty((3, *W.shape))
        size = torch.mul(h, W, out=work[0]).mul_(W).sum(1).clamp_(min=1e-30)
        return cls(W, h, size, along, work)

    def take(self, which: Integer[Tensor, " some"]) -> "Groups":
        """Some of the groups."""
        W, h, size = (part.index_select(0, which) for part in self[:3])
        return Groups(W, h, size, self.along, self.work[:, : len(which)])

    def offsets(
        self, inverse: Float[Tensor, " groups"], zero: Float[Tensor, " groups"], bits: int
    ) -> tuple[Tensor, Tensor]:
        """The codes c of the weights for 1 / s and z, and c − u, in memory that the next call uses again."""
        codes, u, _ = self.work
        torch.mul(self.W, inverse[:, None], out=u).add_(zero[:, None])
        torch.round(u, out=codes).clamp_(0, 2**bits - 1)
        return codes, torch.sub(codes, u, out=u)

    def weigh(self, values: Float[Tensor, "groups weights"]) -> Float[Tensor, "groups weights"]:
        """The values times h, in memory that the next call uses again."""
        return torch.mul(self.h, values, out=self.work[2])

    def errors(self, offsets: Float[Tensor, "groups weights"]) -> Float[Tensor, " groups"]:
        """The error of each group, in units of s²."""
        squares = self.weigh(offsets).mul_(offsets).sum(1)
        if self.along != 1:
            squares += (self.along - 1) * self.weigh(offsets).mul_(self.W).sum(1).square_() / self.size
        return squares

    def errors_of(self, grids: Grids, bits: int) -> Float[Tensor, " groups"]:
        """The error of each group with these grids."""
        scale, zero = grids
        return self.errors(self.offsets(invert(scale), zero, bits)[1]).mul_(scale).mul_(scale)


def search(groups: Groups, bits: int, symmetric: bool, clip: bool) -> Grids:
    """s and z with the least error.

    Args:
        groups: the groups of weights.
        bits: bits of a code.
        symmetric: the zero point is 2^{bits − 1}.
        clip: narrow the range, and refine the scale; otherwise only the sign of a symmetric scale is chosen.

    Example:
        >>> W = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
        >>> scale, zero = search(Groups.of(W, torch.ones_like(W), 1.0), bits=2, symmetric=False, clip=True)
        >>> scale.item(), abs(zero.item())
        (1.0, 0.0)
    """
    scales, zeros = _candidates(groups.W, bits, symmetric, clip)
    errors = torch.full_like(scales, torch.inf)
    per_clip = len(scales) // (len(CLIPS) if clip else 1)
    which, left = None, groups
    # For the groups that are left: 1 / s, z, s² and the errors of each candidate.
    table = torch.stack([invert(scales), zeros, scales.square(), errors])
    for k in range(len(scales)):
        inverse, zero, square, error = table[:, k]
        _, offsets = left.offsets(inverse, zero, bits)
        torch.mul(left.errors(offsets), square, out=error)
        # The first of the candidates of a part has the widest range.
        if k >= BOUNDED_FROM * per_clip and k % per_clip == 0 and k + 1 < len(scales):
            least = _least_error(left, offsets, square, bits)
            remain = (least < table[3].amin(0)).nonzero()[:, 0]
            if 2 * len(remain) < len(error):
                errors = _put(errors, which, table[3])
                which = remain if which is None else which[remain]
                left, table = left.take(remain), table.index_select(2, remain)
            if not len(remain):
                break
    best, chosen = _put(errors, which, table[3]).min(0)
    scale, zero = (part.gather(0, chosen[None])[0] for part in (scales, zeros))
    return (_refine(groups, scale, zero, best, bits) if clip else scale), zero


def invert(scale: Float[Tensor, "*some"]) -> Float[Tensor, "*some"]:
    """1 / s, or 0 where s is 0, which it is only if all weights of a group are."""
    return torch.where(scale == 0, 0, 1 / scale)


def _put(whole: Tensor, which: Tensor | None, part: Tensor) -> Tensor:
    """`whole` with some of its columns replaced; all of them for None."""
    return part if which is None else whole.index_copy_(1, which, part)


def _least_error(groups: Groups, offsets: Tensor, square: Tensor, bits: int) -> Float[Tensor, " groups"]:
    """A lower bound of the errors of all narrower ranges, given s². Changes the offsets."""
    # Rounding a scale to 16 bits moves either end by 2⁻¹¹ of the range.
    outside = offsets.abs_().sub_(1 + 2.0 ** (bits - 10)).clamp_(min=0)
    # A little less, for rounding errors of the sums; and nothing for scales of which rounding changes much.
    least = groups.weigh(outside).mul_(outside).sum(1).mul_(square).mul_(1 - 1e-4)
    return torch.where(square < (FEW_STEPS * STEP) ** 2, 0, least)


def _refine(groups: Groups, scale: Tensor, zero: Tensor, best: Tensor, bits: int) -> Float[Tensor, " groups"]:
    """The scales after some steps, each to the s of least error for the codes that are nearest at the scale before."""
    result, which, left = scale.clone(), torch.arange(len(scale), device=scale.device), groups
    codes, _ = groups.offsets(invert(scale), zero, bits)
    for _ in range(REFINEMENTS):
        steps = codes.sub_(zero[:, None])
        product, norm = (left.weigh(steps).mul_(factor).sum(1) for factor in (left.W, steps))
        if left.along != 1:
            # The zero of the derivative of ‖w − s q‖² + (a − 1) (⟨w − s q, w⟩)² / ‖w‖².
            norm, product = norm + (left.along - 1) * product.square() / left.size, left.along * product
        scale = round_scale(torch.where(norm > 0, product / norm.clamp(min=1e-30), scale))
        codes, offsets = left.offsets(invert(scale), zero, bits)
        errors = left.errors(offsets).mul_(scale).mul_(scale)
        # At the same scale the next step would be the same.
        better = (errors < best).nonzero()[:, 0]
        if not len(better):
            break
        if len(better) < len(which):
            which, left, codes = which[better], left.take(better), codes.index_select(0, better)
            scale, zero, errors = scale[better], zero[better], errors[better]
        result[which], best = scale, errors
    return result


def _candidates(
    W: Float[Tensor, "groups weights"], bits: int, symmetric: bool, clip: bool
) -> tuple[Float[Tensor, "candidates groups"], Float[Tensor, "candidates groups"]]:
    """Scales and zero points of narrower and narrower ranges."""
    most = 2**bits - 1
    clips = torch.tensor(CLIPS if clip else CLIPS[:1], device=W.device)[:, None]
    if symmetric:
        half = 2 ** (bits - 1)
        # With 2^{b−1} − 1 steps both ends are in range; with 2^{b−1} only one of them, chosen by the sign.
        steps = torch.tensor([half - 1, half, -half], device=W.device)[:, None]
        scales = round_scale((clips * W.abs().amax(1))[:, None] / steps).flatten(0, 1)
        return scales, torch.full_like(scales, half)
    low, high = W.amin(1).clamp(max=0), W.amax(1).clamp(min=0)
    scales = round_scale(clips * (high - low) / most)
    return scales, torch.where(scales > 0, (-clips * low / scales).round(), 0).clamp(0, most)


def round_scale(scale: Float[Tensor, "*some"]) -> Float[Tensor, "*some"]:
    """The scale in 16 bits. Tiny scales are rounded up, because one that is too small, or 0, clips weights.

    Example:
        >>> round_scale(torch.tensor([1 + 1e-5, 1e-9]))
        tensor([1.0000e+00, 5.9605e-08])
    """
    rounded = scale.clamp(-LARGEST_SCALE, LARGEST_SCALE).half().float()
    short = (rounded.abs() < scale.abs()) & (scale.abs() < FEW_STEPS * STEP)
    return torch.where(short, rounded + scale.sign() * STEP, rounded)
