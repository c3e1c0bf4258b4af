"""Ŵ in int8, multiplied with inputs that are rounded to 8 bits as they come, or by whatever is faster on this machine.

On disk it is a byte for each weight and 16 bits for each output. In memory there are those and what the kernels that
were called keep for themselves (`laconic.formats.kernels`): none, another byte for each weight, or, where nothing beats
a dense layer, the dense matrix. Which kernel multiplies depends on the shape and on the number of rows, and is measured
the first time that it is asked (`laconic.formats.fastest`).

Where gradients are asked for, on a GPU, and while a compiler looks on, the matrix is multiplied out for each product.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn.functional import linear

from laconic.formats.coded import Coded, as_bytes, from_bytes, frozen, stored
from laconic.formats.fastest import Choice, fastest, measured_rows
from laconic.formats.kernels import DTYPES, KERNELS, Kernel, Matrix
from laconic.numerics.tied import Sharing, grid_places


class DynamicInt8(Coded):
    """y = Ŵ x + bias with w = s c: c in [−128, 127], kept as its two's complement, and s of each output (out,)."""

    kind = "dynamic-int8"

    def __init__(self, shape: tuple[int, int], kept: int | None = None, bias: bool = False) -> None:
        super().__init__(shape, 8, kept, bias)
        self.scales = stored(2 * shape[0])
        self._ready = Ready()

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
    def matrix(self) -> Matrix:
        """Codes and scales; a weight that was pruned has the code 0."""
        scale, mask = from_bytes(self.scales.detach()), self.support
        codes = self.codes.detach().view(torch.int8)
        if mask is None:
            return Matrix(codes.view(self.shape), scale)
        return Matrix(torch.zeros(self.shape, dtype=torch.int8, device=mask.device).masked_scatter_(mask, codes), scale)

    def decoded(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Float[Tensor, "rows columns"]:
        return codes.view(torch.int8).float().mul_(from_bytes(self.scales.detach())[:, None])

    @property
    def numbers(self) -> nn.Parameter:
        return self.scales

    def sharing(self, codes: Integer[Tensor, "out in"]) -> Sharing:
        return Sharing(grid_places(self.shape, self.in_features, codes.device), codes.view(torch.int8).float())

    def dense(self) -> Float[Tensor, "out in"]:
        return self.matrix.dense(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs_in_int8(x):
            return linear(x, self.dense(), self.bias)
        rows = x.reshape(-1, self.in_features)
        return self._ready.kernel(self, len(rows), x.dtype)(rows, self.bias).view(*x.shape[:-1], self.out_features)

    def choice(self, rows: int, dtype: torch.dtype = torch.float32) -> Choice:
        """The kernel that so many rows are multiplied with on this machine; measured now if it has not been before."""
        return fastest(rows, self.shape, dtype)

    @property
    def kept_nbytes(self) -> int:
        """Bytes in memory beside its tensors: of the kernels that were called."""
        return sum(kernel.nbytes for kernel in self._ready.kernels.values())

    @property
    def kernels(self) -> dict[int, str]:
        """What was called, by the number of rows that it was measured for."""
        return {rows: name for (rows, _, _), name in sorted(self._ready.chosen.items(), key=lambda item: item[0][0])}

    def _runs_in_int8(self, x: Tensor) -> bool:
        if torch.is_grad_enabled() and (x.requires_grad or (self.shift is not None and self.shift.requires_grad)):
            return False
        plain = x.is_cpu and x.dtype == self.weight.dtype and x.dtype in DTYPES and x.numel() > 0
        return plain and not torch.compiler.is_compiling()

    def spec(self) -> dict[str, Any]:
        spec = self.coded_spec()
        del spec["bits"]
        return spec

    @classmethod
    def shell(cls, **spec: Any) -> "DynamicInt8":
        return cls((spec.pop("out_features"), spec.pop("in_features")), **spec)


class Ready:
    """The kernels of one layer that were called, made from its tensors as they were then."""

    def __init__(self) -> None:
        self.chosen: dict[tuple[int, torch.dtype, int], str] = {}
        self.kernels: dict[tuple[str, torch.dtype], Kernel] = {}
        self._of: tuple[object, ...] = ()

    def __deepcopy__(self, memo: object) -> "Ready":
        return Ready()

    def __reduce__(self) -> tuple[Callable[[], "Ready"], tuple[()]]:
        # What a library packed stays in its process.
        return Ready, ()

    def kernel(self, layer: DynamicInt8, rows: int, dtype: torch.dtype) -> Kernel:
        """The fastest kernel for so many rows and the matrix that `layer` holds now."""
        made_from = (layer.codes, layer.scales)
        of = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in made_from)
        if of != self._of:
            self.kernels, self._of = {}, of
        asked = (measured_rows(rows), dtype, torch.get_num_threads())
        if asked not in self.chosen:
            self.chosen[asked] = layer.choice(rows, dtype).kernel
        name = self.chosen[asked]
        if (name, dtype) not in self.kernels:
            self.kernels[name, dtype] = KERNELS[name](layer.matrix, dtype)
        return self.kernels[name, dtype]
