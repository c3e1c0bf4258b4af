"""The product of inputs and a matrix that was decoded for it.

In fp32 torch multiplies by MKL, which leaves the wider half of the vector registers of some processors unused. oneDNN,
which torch has too, can be twice as fast there. Which one is faster is measured once (`laconic.formats.autotune`).
"""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from laconic.formats.autotune import autotune, can_use_kernels
from laconic.formats.kernels import DENSE, DenseKernel, Kernel, KernelFamily

ONEDNN = "onednn"
FEWEST_ROWS, FEWEST_WEIGHTS = 8, 2**16
"""With fewer rows of inputs, or fewer weights, the product takes little time, and torch's own is used."""
MEASURED_ROWS, MEASURED_SHAPE = 256, (1024, 1024)
"""The product that is measured. Neither library gains more than a few percent by another shape."""


def multiply(x: Float[Tensor, "... in"], weight: Float[Tensor, "out in"], bias: Tensor | None) -> Tensor:
    """x W^T + bias, by the library that is faster on this machine.

    Args:
        x: the inputs.
        weight: the matrix, in the dtype of `x`.
        bias: (out,), or None.

    Example:
        >>> multiply(torch.ones(1, 2), torch.eye(2), torch.ones(2))
        tensor([[2., 2.]])
    """
    rows = x.numel() // max(weight.shape[1], 1)
    is_large = x.dtype is torch.float32 and rows >= FEWEST_ROWS and weight.numel() >= FEWEST_WEIGHTS
    if is_large and can_use_kernels(x, weight.dtype, bias) and _fastest(torch.get_num_threads()) == ONEDNN:
        return onednn_linear(x, weight, bias)
    return linear(x, weight, bias)


def onednn_linear(x: Float[Tensor, "... in"], weight: Float[Tensor, "out in"], bias: Tensor | None) -> Tensor:
    """x W^T + bias by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDnnKernel(Kernel):
    """Keeps the dense matrix, and multiplies by oneDNN."""

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        self._weight = weight

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        return onednn_linear(x, self._weight, bias)


class DenseFamily(KernelFamily[Tensor]):
    """Products with a dense matrix."""

    name = label = "dense matrices"
    small = DENSE
    max_rows = MEASURED_ROWS

    @property
    def makers(self) -> Mapping[str, Callable[[Tensor, torch.dtype], Kernel]]:
        return {DENSE: lambda weight, _: DenseKernel(weight), ONEDNN: lambda weight, _: OneDnnKernel(weight)}

    def example(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=generator)

    def dense(self, matrix: Tensor, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        return matrix.to(dtype)


@cache
def _fastest(threads: int) -> str:
    """The name of the faster library with the present number of threads, which is `threads`."""
    return autotune(DenseFamily(), MEASURED_ROWS, MEASURED_SHAPE, torch.float32).kernel
