"""Ŵ with zeros where a mask is False: one plain linear, stored as the mask and the values that are kept."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear

from laconic.formats.base import Format, own_bias
from laconic.formats.masked import Masked, exact_pattern


class Sparse(Masked):
    """y = (Ŵ ∘ M) x + bias. `linear` holds Ŵ with its zeros, and the bias."""

    kind = "sparse"
    child = "linear"

    def __init__(
        self, out_features: int, in_features: int, kept: int, bias: bool, pattern: Sequence[int] | None = None
    ) -> None:
        super().__init__((out_features, in_features), kept, pattern)
        # There is a linear once there is a weight; what it will be called, its bias is called already.
        self.linear: nn.Module = nn.Module()
        self.linear.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)

    @classmethod
    def of(
        cls, weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], pattern: tuple[int, int] | None = None
    ) -> "Sparse":
        """The format of a matrix with its zeros, without a bias; `mask` is True where a weight is kept.

        pattern: (N, M) of a mask that is to keep N of every M consecutive inputs; it is used where that is exact.
        """
        mask = mask.to(weight.device)
        with torch.device("meta"):
            layer = cls(*weight.shape, kept=0, bias=False, pattern=exact_pattern(mask, pattern))
        layer.to_empty(device=weight.device)
        layer.fill(weight.detach(), mask)
        return layer.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.matrix()
        if torch.is_grad_enabled() and weight.requires_grad and self.mask is not None:
            # A chosen zero has a gradient of zero, whatever comes back, so that no optimizer moves it.
            return linear(x, torch.where(self.mask, weight, 0), self.bias)
        return self.linear(x)

    def matrix(self) -> Tensor:
        return self.linear.get_parameter("weight")

    def hold(self, weight: Tensor, trainable: bool) -> None:
        bias = self.bias
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, bias=False)
        plain.weight = nn.Parameter(weight, requires_grad=trainable)
        plain.register_parameter("bias", bias)
        self.linear = plain.train(self.training)

    def macs(self) -> int:
        # A dense product multiplies by the zeros too.
        return self.out_features * self.in_features

    @property
    def bias(self) -> nn.Parameter | None:
        return dict(self.linear.named_parameters(recurse=False)).get("bias")

    def set_bias(self, bias: Tensor | None) -> None:
        self.linear.register_parameter("bias", own_bias(bias))

    def for_lookup(self, padding_idx: int | None) -> Format:
        raise ValueError("a word embedding")

    def spec(self) -> dict[str, Any]:
        return {**self.masked_spec(), "bias": self.bias is not None}

    @classmethod
    def shell(cls, **spec: Any) -> "Sparse":
        return cls(**spec)
