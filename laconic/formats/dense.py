"""A plain linear, where the class of the model has one that could not hold it: one without a bias."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic.formats.base import Format, own_bias, refit_weight


class Dense(Format):
    """y = W x + bias. `linear` holds both."""

    kind = "dense"
    readers = ("linear",)
    holds = "linear.weight"

    def __init__(self, out_features: int, in_features: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.out_features, self.in_features = out_features, in_features

    @classmethod
    def of(cls, weight: Float[Tensor, "out in"]) -> "Dense":
        """The format of a matrix as it is, without a bias."""
        with torch.device("meta"):
            layer = cls(*weight.shape, bias=False)
        layer.to_empty(device=weight.device)
        layer.linear.weight = nn.Parameter(weight.detach().contiguous())
        return layer.to(weight.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

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
        self.linear.register_parameter("bias", own_bias(bias))

    def for_lookup(self, padding_idx: int | None) -> Format:
        raise ValueError("a word embedding has no bias, and is a plain one where nothing was compressed")

    def spec(self) -> dict[str, Any]:
        return {"out_features": self.out_features, "in_features": self.in_features, "bias": self.bias is not None}

    @classmethod
    def shell(cls, **spec: Any) -> "Dense":
        return cls(**spec)
