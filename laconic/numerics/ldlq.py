"""Rounding with feedback along rows and columns alike, for a curvature that couples both.

Paper: A. Tseng, Z. Sun, C. De Sa, "Model-Preserving Adaptive Rounding" (YAQA), ICML 2026, arXiv 2505.22988. With
F = R_O D_O R_O^T and H = R_I D_I R_I^T, both R upper triangular with ones on the diagonal, and E = W − Ŵ,

    ½ tr(F E H E^T) = ½ Σ_ij [D_O]_ii [D_I]_jj Z_ij²,    Z = R_O^T E R_I = E + (terms of E above and to the left),

so every weight is rounded to the value nearest to W plus those terms, from the top left on. With F = I it is GPTQ. The
paper writes the same from the bottom right on, with lower triangles.

Weights on one anti-diagonal do not depend on each other. The matrix is cut into tiles; those on one anti-diagonal of
tiles go through their own anti-diagonals together, and what tiles leave for each other are matrix products.

Notation: W (m, n); Y = E R_I. Tiles are kept *askew*, (2t − 1, t, tiles): [s, i] is row i, column s − i. What goes
down a column is kept by columns, [s, j] being row s − j, column j.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from laconic.numerics.gptq import Values
from laconic.numerics.psd import root_factor

TILE = 16
"""Rows and columns of a tile."""


def unit_factor(S: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """R, upper triangular with ones on the diagonal: S = R D R^T; a singular S is raised as in `root_factor`."""
    R = root_factor(S.flip(0, 1)).flip(0, 1)
    return R / R.diagonal()


def ldlq(
    W: Float[Tensor, "out in"], values: Values, R_O: Float[Tensor, "out out"], R_I: Float[Tensor, "in in"]
) -> UInt8[Tensor, "out in"]:
    """The codes of the sweep from the top left to the bottom right."""
    m, n = W.shape
    rows, columns = -(-m // TILE), -(-n // TILE)
    low, right = rows * TILE - m, columns * TILE - n
    R_O, R_I = pad(R_O, (0, low, 0, low)), pad(R_I, (0, right, 0, right))
    down, along = _reach(R_O), _reach(R_I)
    # What fills up the last tiles has no value but 0, its own, and so leaves nothing for others.
    parts = [part.double().expand(m, n) for part in (W, values.scale, values.inverse, values.zero)]
    wanted = torch.stack([_tiles(pad(part, (0, right, 0, low))) for part in parts])
    E, Y, codes = (torch.zeros_like(wanted[0]) for _ in range(3))
    for diagonal in range(rows + columns - 1):
        places = [(i, diagonal - i) for i in range(max(0, diagonal - columns + 1), min(diagonal, rows - 1) + 1)]
        at = torch.tensor(places, device=W.device).T
        left = torch.stack([_sum(E[i, :j], R_I[: j * TILE, j * TILE :][:, :TILE]) for i, j in places])
        above = torch.stack([_sum(Y[:i, j].mT, R_O[: i * TILE, i * TILE :][:, :TILE]) for i, j in places])
        feedback = [_longer(_askew(part)) for part in (left, above)]
        found = _through(
            _askew(wanted[:, at[0], at[1]]), feedback, (along[..., at[1]], down[..., at[0]]), 2**values.bits - 1
        )
        codes[*at], E[*at], Y[*at] = _straight(found)
    return codes.transpose(1, 2).reshape(rows * TILE, -1)[:m, :n].to(torch.uint8)


def _through(
    wanted: Float[Tensor, "4 steps t tiles"],
    feedback: list[Tensor],
    reach: tuple[Tensor, Tensor],
    most: int,
) -> Float[Tensor, "3 steps t tiles"]:
    """Tiles that do not depend on each other: codes, E and Y. `feedback`, from the left and from above, is added to."""
    W, scale, inverse, zero = wanted
    left, above = feedback
    along, down = reach
    found = torch.zeros_like(wanted[:3])
    for s in range(2 * TILE - 1):
        # Its rows, and its columns too, though these in reverse order.
        here = slice(max(0, s - TILE + 1), min(s, TILE - 1) + 1)
        from_left = left[s, here]
        w = W[s, here] + from_left + above[s, here].flip(0)
        codes = (w * inverse[s, here]).add_(zero[s, here]).round_().clamp_(0, most)
        e = W[s, here] - (codes - zero[s, here]).mul_(scale[s, here])
        y = e + from_left
        found[0, s, here], found[1, s, here], found[2, s, here] = codes, e, y
        left[s + 1 : s + TILE, here].addcmul_(along[s, :, here], e[None])
        above[s + 1 : s + TILE, here].addcmul_(down[s, :, here], y.flip(0)[None])
    return found


def _tiles(X: Float[Tensor, "height width"]) -> Float[Tensor, "rows columns t t"]:
    return X.view(X.shape[0] // TILE, TILE, -1, TILE).transpose(1, 2).contiguous()


def _sum(tiles: Float[Tensor, "k t t"], R: Float[Tensor, "height t"]) -> Float[Tensor, "t t"]:
    """The tiles side by side, times R."""
    return tiles.transpose(0, 1).reshape(TILE, -1) @ R


def _askew(X: Float[Tensor, "*some tiles t t"]) -> Float[Tensor, "*some steps t tiles"]:
    """[…, s, i, :] = X[…, :, i, s − i], 0 where there is none."""
    # Rows that are one number shorter than they are apart move by one to the right each.
    wide = pad(X, (0, TILE)).flatten(-2)[..., : TILE * (2 * TILE - 1)]
    return wide.unflatten(-1, (TILE, -1)).transpose(-1, -3).contiguous()


def _straight(X: Float[Tensor, "some steps t tiles"]) -> Float[Tensor, "some tiles t t"]:
    """The inverse of `_askew`."""
    i = torch.arange(TILE, device=X.device)
    return X[:, i[:, None] + i, i[:, None]].permute(0, 3, 1, 2)


def _longer(X: Float[Tensor, "steps t tiles"]) -> Float[Tensor, "longer t tiles"]:
    """With room for what the last steps would add, which is all 0."""
    return pad(X, (0, 0, 0, 0, 0, TILE - 1))


def _reach(R: Float[Tensor, "size size"]) -> Float[Tensor, "steps reach t blocks"]:
    """Of every block T on the diagonal, [s, d − 1, i] = T[j, j + d] for j = s − i: what reaches d places further."""
    blocks = torch.stack([R[k : k + TILE, k : k + TILE] for k in range(0, len(R), TILE)])
    ahead = torch.stack([pad(blocks.diagonal(d, 1, 2), (0, d)) for d in range(1, TILE)])
    s, i = (torch.arange(size, device=R.device) for size in (2 * TILE - 1, TILE))
    j = s[:, None] - i
    reached = ahead[:, :, j.clamp(0, TILE - 1)] * ((j >= 0) & (j < TILE))
    return reached.permute(2, 0, 3, 1).contiguous()
