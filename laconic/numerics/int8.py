"""Products in whole numbers of 8 bits: weights with a scale for each output, inputs with a range for each row.

A row x of inputs is put on `levels` even steps between its smallest and its largest number, found when it comes:
q = round((x − l) / s), s = (h − l) / levels. As x ≈ l + s q, a weight w = d c, c an integer in [−128, 127], gives

    y_i = s d_i Σ_j q_j c_ij + l d_i Σ_j c_ij

of which the first sum is of integers and exact, and the second is known before. (Dynamic quantization of "tokens":
Z. Yao et al., "ZeroQuant", NeurIPS 2022, arXiv 2206.01861, section 4.1; here with a zero point.)

With 255 levels two products of a byte and a code may add up to more than 16 bits hold, which processors without
instructions for such sums let them do; with 127 they cannot.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor


class Steps(NamedTuple):
    """Rows of inputs on their steps: x ≈ low + step · levels, `levels` being whole numbers once rounded."""

    levels: Float[Tensor, "rows in"]
    low: Float[Tensor, "rows 1"]
    step: Float[Tensor, "rows 1"]


def on_steps(x: Float[Tensor, "rows in"], levels: int) -> Steps:
    """Each row of `x` between 0 and `levels`, not rounded yet; a row of one and the same number is all zeros."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (high - low) / levels
    inverse = torch.where(step > 0, 1 / step, 0)
    return Steps((x - low).mul_(inverse), low, step)


def int8_product(
    x: Float[Tensor, "rows in"], codes: Int8[Tensor, "out in"], scale: Float[Tensor, " out"], levels: int
) -> Float[Tensor, "rows out"]:
    """y as above, its sums exact: what every kernel is held against."""
    q, low, step = on_steps(x.float(), levels)
    sums = q.round().double() @ codes.double().T
    return (scale * (step * sums + low * codes.double().sum(1))).to(x.dtype)
