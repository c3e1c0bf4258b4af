"""What scores take from second moments: how much each input, and each output, counts.

An input that was never seen active, or an output whose gradients are all zero, counts as good as nothing, but not
exactly so: among its weights the smallest still go first. Where nothing was seen at all, all count the same.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.numerics.psd import RELATIVE_FLOOR, Moment, shrink


def importance(S: Moment) -> Float[Tensor, " n"]:
    """diag S in fp64, no element of it zero."""
    S = shrink(S, 0.0)
    diagonal = S if S.ndim == 1 else S.diagonal()
    return diagonal.clamp(min=RELATIVE_FLOOR * diagonal.mean().item())


def of_inputs(known: LayerStats) -> Float[Tensor, " in"]:
    """C_jj."""
    return importance(known[InputCovariance].matrix)


def activity(known: LayerStats) -> Float[Tensor, " in"]:
    """1 for inputs that were seen active, and next to nothing for the others, which damping makes look as if they were.

    Where nothing was seen at all, 1.
    """
    C = shrink(known[InputCovariance].matrix, 0.0)
    active = (C if C.ndim == 1 else C.diagonal()) > 0
    return torch.where(active, 1.0, RELATIVE_FLOOR).double()


def of_outputs(known: LayerStats) -> Float[Tensor, "out 1"]:
    """F_ii."""
    return importance(known[GradCovariance].matrix)[:, None]
