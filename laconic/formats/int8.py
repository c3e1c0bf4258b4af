"""Ŵ in int8, multiplied with inputs that are rounded to 8 bits as they come, or by whatever is faster on this machine.

On disk it is a byte for each weight and 16 bits for each output. In memory there are those and what the kernels that
were called keep for themselves (`laconic.formats.int8_kernels`): none, another byte for each weight, or, where nothing
beats a dense layer, the dense matrix. Which kernel multiplies depends on the shape and on the number of rows, and is
measured the first time that it is asked (`laconic.formats.autotune`).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor, nn

from laconic.formats.int8_kernels import INT8, Matrix
from laconic.formats.kernels import KernelFamily
from laconic.formats.packed import Coded, as_bytes, from_bytes, frozen, stored
from laconic.numerics.tied import Sharing, grid_places


class DynamicInt8(Coded):
    """y = Ŵ x + bias with w = s c: c in [−128, 127], kept as its two's complement, and s of each output (out,)."""

    kind = "dynamic-int8"

    def __init__(self, shape: tuple[int, int], kept: int | None = None, bias: bool = False) -> None:
        super().__init__(shape, 8, kept, bias)
        self.scales = stored(2 * shape[0])

    @classmethod
    def of(
        cls,
        codes: Integer[Tensor, "out in"],
        scale: Float[Tensor, " out"],
        dtype: torch.dtype = torch.float32,
        mask: Bool[Tensor, "out in"] | None = None,
    ) -> "DynamicInt8":
        """The format of int8 codes and scales that 16 bits hold, without a bias; `mask` is True where one is kept."""
        kept = None if mask is None else int(mask.count_nonzero())
        with torch.device("meta"):
            layer = cls((codes.shape[0], codes.shape[1]), kept)
        layer.to_empty(device=codes.device)
        layer.encode(codes.view(torch.uint8), mask)
        layer.scales = frozen(as_bytes(scale))
        return layer.to(dtype)

    @property
    def family(self) -> KernelFamily[Any] | None:
        return INT8

    @property
    def matrix(self) -> Matrix:
        """Codes and scales; a weight that was pruned has the code 0."""
        scale, mask = from_bytes(self.scales.detach()), self.support
        codes = self.codes.detach().view(torch.int8)
        if mask is None:
            return Matrix(codes.view(self.shape), scale)
        return Matrix(torch.zeros(self.shape, dtype=torch.int8, device=mask.device).masked_scatter_(mask, codes), scale)

    def decoded(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Float[Tensor, "rows columns"]:
        return codes.view(torch.int8).float().mul_(from_bytes(self.scales.detach())[:, None])

    def codes_for(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        scale = from_bytes(self.scales.detach())[:, None]
        steps = (weight.float() * torch.where(scale == 0, 0, 1 / scale)).round_().clamp_(-128, 127)
        return steps.to(torch.int8).view(torch.uint8)

    @property
    def numbers(self) -> nn.Parameter:
        return self.scales

    def sharing(self, codes: Integer[Tensor, "out in"]) -> Sharing:
        return Sharing(grid_places(self.shape, self.in_features, codes.device), codes.view(torch.int8).float())

    def dense(self) -> Float[Tensor, "out in"]:
        return self.matrix.dense(self.weight.dtype)

    def spec(self) -> dict[str, Any]:
        spec = self.coded_spec()
        del spec["bits"]
        return spec

    @classmethod
    def shell(cls, **spec: Any) -> "DynamicInt8":
        return cls((spec.pop("out_features"), spec.pop("in_features")), **spec)
