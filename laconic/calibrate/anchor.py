"""The matrix that best brings the outputs of a layer back to those of the dense model, from inputs that have drifted.

With x̃ the inputs as they are now and y* the outputs to be reached, over the same tokens,

    W* = (D + λ W)(C + λ I)^{-1},   C = Cov(x̃),   D = Cov(y*, x̃),   λ = ridge · mean(diag C)

and ‖Y* − Ŵ X̃‖² = const + ‖(W* − Ŵ) C^{1/2}‖², so approximating W* under C is the same problem as before, with the errors
of earlier layers in it (AA-SVD, arXiv 2604.02119; GPTAQ, arXiv 2504.02692). Where the bias may not move, C and D are the
uncentred moments.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate.known import Known
from laconic.calibrate.problem import Means, Problem
from laconic.calibrate.statistics import Gram

RIDGE = 1e-2


class Anchor:
    """Sums over tokens of one layer: inputs as they are, outputs as they should be, and their products."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        zeros = torch.zeros(shape, dtype=torch.float64, device=device)
        self.products, self.x, self.y, self.count = zeros, zeros.new_zeros(shape[1]), zeros.new_zeros(shape[0]), 0

    def update(self, x: Float[Tensor, "tokens in"], y: Float[Tensor, "tokens out"]) -> None:
        """Add the tokens of one call: drifted inputs and wanted outputs."""
        self.count += len(x)
        self.x += x.sum(0, dtype=torch.float64)
        self.y += y.sum(0, dtype=torch.float64)
        self.products += y.T @ x

    def problem(self, W: Float[Tensor, "out in"], known: Known, ridge: float, centred: bool) -> Problem:
        """What a method is to solve; `known` has the Gram of the drifted inputs."""
        number = max(self.count, 1)
        x, y, D = self.x / number, self.y / number, self.products / number
        C = known[Gram].matrix
        if centred:
            C, D = C - torch.outer(x, x), D - torch.outer(y, x)
        target = wanted(W, C, D, ridge).to(W.dtype)
        moments = known | Known([Gram.of(C, known[Gram].count)])
        return Problem(weight=target, known=moments, means=Means(x, y) if centred else None)


def wanted(
    W: Float[Tensor, "out in"], C: Float[Tensor, "in in"], D: Float[Tensor, "out in"], ridge: float
) -> Float[Tensor, "out in"]:
    """W* = (D + λ W)(C + λ I)^{-1} in fp64; W itself where nothing was seen."""
    W = W.double()
    level = ridge * C.diagonal().mean()
    if level <= 0:
        return W
    regular = C + level * torch.eye(len(C), dtype=C.dtype, device=C.device)
    return torch.linalg.solve(regular, (D + level * W).T).T
