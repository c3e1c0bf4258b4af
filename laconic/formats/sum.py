"""The sum of two formats of one matrix, such as few bits everywhere and a low-rank correction."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from laconic.formats.base import Format, weight_macs, weight_nbytes

ROUNDS = 2
"""The number of times that each of the two is refitted to the residual of the other."""


class Sum(Format):
    """y = S x + R x + bias, with `first` = S and `second` = R two formats of the same shape. `first` has the bias.

    Stored: both formats.

    Args:
        out_features: rows of the matrix.
        in_features: columns of the matrix.

    Example:
        >>> import torch
        >>> from laconic.formats import Dense, LowRank
        >>> low = LowRank.from_factors(torch.ones(2, 1), torch.ones(1, 2))
        >>> layer = Sum.from_parts(Dense.from_weight(torch.eye(2)), low)
        >>> layer.dense().tolist(), layer.nbytes()
        ([[2.0, 1.0], [1.0, 2.0]], 32)
    """

    kind = "sum"
    input_modules = ("first", "second")

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        # The two formats are set later, as nested formats are when a model is loaded.
        self.first: nn.Module = nn.Module()
        self.second: nn.Module = nn.Module()

    @classmethod
    def from_parts(cls, first: Format, second: Format) -> "Sum":
        """The sum of two formats without a bias.

        Raises:
            ValueError: their shapes differ.
        """
        if first.shape != second.shape:
            raise ValueError(f"formats of {first.shape} and {second.shape} cannot be added")
        layer = cls(*first.shape)
        layer.first, layer.second = first, second
        return layer.to(first.weight.dtype).to(first.weight.device)

    @property
    def parts(self) -> tuple[Format, Format]:
        """`first` and `second`."""
        assert isinstance(self.first, Format)
        assert isinstance(self.second, Format)
        return self.first, self.second

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

    def to_embedding(self, padding_idx: int | None) -> Format:
        first, second = self.parts
        return Sum.from_parts(first.to_embedding(padding_idx), second.to_embedding(padding_idx))

    def spec(self) -> dict[str, Any]:
        return self._sizes
