"""Modules that replace a layer but compress no matrix: a plain matrix, a constant, a linear map after a norm."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic.formats.base import Format, copy_bias, refit_weight


class Dense(Format):
    """y = W x + bias: a plain linear that replaces a layer without a bias when a bias is added.

    Stored: the weight (out, in) and the bias, in the dtype of the model.

    Args:
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        bias: whether there is a bias.

    Example:
        >>> layer = Dense.from_weight(torch.eye(2))
        >>> layer.nbytes(), layer(torch.tensor([1.0, 2.0])).tolist()
        (16, [1.0, 2.0])
    """

    kind = "dense"
    input_modules = ("linear",)
    matrix_parameter = "linear.weight"

    def __init__(self, out_features: int, in_features: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.out_features, self.in_features = out_features, in_features

    @classmethod
    def from_weight(cls, weight: Float[Tensor, "out in"]) -> "Dense":
        """The format of a matrix (out, in), without a bias."""
        layer = cls.uninitialized(weight.device, *weight.shape, bias=False)
        layer.linear.weight = nn.Parameter(weight.detach().contiguous())
        return layer.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def dense(self) -> Float[Tensor, "out in"]:
        return self.linear.weight

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        refit_weight(self.linear, target, moment)

    def nbytes(self) -> int:
        return self.linear.weight.nbytes

    def macs(self) -> int:
        return self.linear.weight.numel()

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def set_bias(self, bias: Tensor | None) -> None:
        self.linear.register_parameter("bias", copy_bias(bias))

    def spec(self) -> dict[str, Any]:
        return {**self._sizes, "bias": self.bias is not None}


class Constant(Format):
    """y = bias, or zeros, for every input. It replaces the layers of a dropped part of a block.

    Stored: the bias, if there is one.

    Args:
        out_features: rows of the matrix, which is zero.
        in_features: columns of the matrix.
        bias: whether there is a bias.
        width: the width of the output, `out_features` by default; 0 if only another constant reads it, to save the
            zeros.

    Example:
        >>> Constant(3, 2, bias=False)(torch.ones(1, 2))
        tensor([[0., 0., 0.]])
    """

    kind = "constant"
    input_modules = ()

    def __init__(self, out_features: int, in_features: int, bias: bool, width: int | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.width = out_features if width is None else width
        self.register_parameter("constant", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.constant: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.width)
        return x.new_zeros(size) if self.constant is None else self.constant.to(x.dtype).expand(size)

    def dense(self) -> Float[Tensor, "out in"]:
        like = self.weight if self.constant is None else self.constant
        return like.new_zeros(self.shape)

    def nbytes(self) -> int:
        return 0

    def macs(self) -> int:
        return 0

    @property
    def bias(self) -> Tensor | None:
        return self.constant

    def set_bias(self, bias: Tensor | None) -> None:
        self.register_parameter("constant", copy_bias(bias))

    def spec(self) -> dict[str, Any]:
        narrower = {} if self.width == self.out_features else {"width": self.width}
        return {**self._sizes, "bias": self.constant is not None, **narrower}


class LinearReplacement(nn.Module):
    """y = T norm(x) + b: a norm followed by the linear map that replaces dropped blocks.

    It is no `Format`, as a norm is no matrix, but it keeps a zero-length `weight` too, so that transformers without
    laconic refuses the checkpoint. Stored: the norm, T (d, d) unless it is the identity, and b (d,).

    Args:
        norm: the replaced norm.
        features: d.
        matrix: whether there is a T; otherwise it is the identity.

    Example:
        >>> layer = LinearReplacement.from_map(nn.Identity(), 2 * torch.eye(2), torch.ones(2))
        >>> layer(torch.tensor([1.0, 2.0])).tolist()
        [3.0, 5.0]
    """

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
    def from_map(
        cls, norm: nn.Module, matrix: Float[Tensor, "d d"] | None, bias: Float[Tensor, " d"]
    ) -> "LinearReplacement":
        """`norm` followed by T = `matrix` and b = `bias`; None for the identity."""
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
        """Bytes of T on disk in the present dtype."""
        return 0 if self.linear is None else self.linear.weight.nbytes
