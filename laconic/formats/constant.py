"""Where a part of a block was dropped: no matrix, and the same output for every input."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic.formats.base import Format, own_bias


class Constant(Format):
    """y = bias, or zeros: the layer whose matrix (out, in) is zero.

    width: how many numbers it gives, `out_features` where not said; none at all where what reads them is a constant
    too, so that nothing is computed on zeros.
    """

    kind = "constant"
    readers = ()

    def __init__(self, out_features: int, in_features: int, bias: bool, width: int | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.width = out_features if width is None else width
        self.register_parameter("constant", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.constant: nn.Parameter | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

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
        self.register_parameter("constant", own_bias(bias))

    def for_lookup(self, padding_idx: int | None) -> Format:
        raise ValueError("a word embedding is not dropped")

    def spec(self) -> dict[str, Any]:
        sizes = {"out_features": self.out_features, "in_features": self.in_features}
        narrower = {} if self.width == self.out_features else {"width": self.width}
        return {**sizes, "bias": self.constant is not None, **narrower}

    @classmethod
    def shell(cls, **spec: Any) -> "Constant":
        return cls(**spec)
