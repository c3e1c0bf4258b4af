"""Ŵ = S + A B: two formats of one matrix side by side, say few bits everywhere and more for what matters most."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from laconic.formats.base import Format, weight_macs, weight_nbytes

ROUNDS = 2
"""How often each of the two is refitted to what the other leaves."""


class Sum(Format):
    """y = S x + A B x + bias. `first` and `second` are formats of the same shape; the bias is that of `first`."""

    kind = "sum"
    readers = ("first", "second")

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        # The two are put here, as what lies inside of every format is when it is loaded.
        self.first: nn.Module = nn.Module()
        self.second: nn.Module = nn.Module()

    @classmethod
    def of(cls, first: Format, second: Format) -> "Sum":
        """The sum of two formats, neither of which has a bias.

        Raises:
            ValueError: they are of different shapes.
        """
        if first.shape != second.shape:
            raise ValueError(f"formats of {first.shape} and {second.shape} cannot be added")
        layer = cls(*first.shape)
        layer.first, layer.second = first, second
        return layer.to(first.weight.dtype).to(first.weight.device)

    @property
    def parts(self) -> tuple[Format, Format]:
        """Both formats."""
        assert isinstance(self.first, Format)
        assert isinstance(self.second, Format)
        return self.first, self.second

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)

    def dense(self) -> Float[Tensor, "out in"]:
        first, second = self.parts
        return first.dense() + second.dense()

    def refit(self, target: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]) -> None:
        first, second = self.parts
        for _ in range(ROUNDS):
            first.refit(target - second.dense().detach(), moment)
            second.refit(target - first.dense().detach(), moment)

    def nbytes(self) -> int:
        return weight_nbytes(self.first) + weight_nbytes(self.second)

    def macs(self) -> int:
        return weight_macs(self.first) + weight_macs(self.second)

    @property
    def bias(self) -> Tensor | None:
        return self.parts[0].bias

    def set_bias(self, bias: Tensor | None) -> None:
        self.parts[0].set_bias(bias)

    def for_lookup(self, padding_idx: int | None) -> Format:
        first, second = self.parts
        return Sum.of(first.for_lookup(padding_idx), second.for_lookup(padding_idx))

    def spec(self) -> dict[str, Any]:
        return {"out_features": self.out_features, "in_features": self.in_features}

    @classmethod
    def shell(cls, **spec: Any) -> "Sum":
        return cls(**spec)
