"""A norm and what stands for the blocks that were dropped behind it: y = T norm(x) + b.

It is no format, for a norm is no matrix, but like one it keeps a zero-length `weight` where that of the norm was, so
that transformers without laconic refuses the checkpoint.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LinearReplacement(nn.Module):
    """`norm` is what stood in this place. `linear` holds T (d, d) and b (d,); without T it is the identity."""

    weight: Tensor

    def __init__(self, norm: nn.Module, features: int, matrix: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0))
        self.norm = norm
        self.features = features
        self.linear = nn.Linear(features, features) if matrix else None
        self.register_parameter("shift", None if matrix else nn.Parameter(torch.empty(features)))
        self.shift: nn.Parameter | None

    @classmethod
    def of(cls, norm: nn.Module, matrix: Float[Tensor, "d d"] | None, bias: Float[Tensor, " d"]) -> "LinearReplacement":
        """`norm`, followed by these."""
        with torch.device("meta"):
            layer = cls(norm, len(bias), matrix is not None)
        layer.weight = torch.empty(0, dtype=bias.dtype, device=bias.device)
        shift = nn.Parameter(bias.detach().clone())
        if layer.linear is None or matrix is None:
            layer.shift = shift
        else:
            layer.linear.weight = nn.Parameter(matrix.detach().clone())
            layer.linear.bias = shift
        return layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.linear is not None:
            return self.linear(y)
        assert self.shift is not None
        return y + self.shift

    @property
    def matrix(self) -> Float[Tensor, "d d"] | None:
        """T, or None for the identity."""
        return None if self.linear is None else self.linear.weight

    @property
    def bias(self) -> Float[Tensor, " d"]:
        """b."""
        bias = self.shift if self.linear is None else self.linear.bias
        assert bias is not None
        return bias

    def nbytes(self) -> int:
        """Bytes of T on disk in the present dtype, bias excluded."""
        return 0 if self.linear is None else self.linear.weight.nbytes
