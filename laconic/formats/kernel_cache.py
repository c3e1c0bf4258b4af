"""When a layer of codes is multiplied by a kernel instead of being decoded, and the kernels that it has ready.

Where gradients are asked for, on a GPU, and while a compiler looks on, the matrix is decoded for each product.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from laconic.formats.autotune import Choice, measured_rows
from laconic.formats.kernels import DECODED, DTYPES, Kernel


def left_to_kernels(x: Tensor, dtype: torch.dtype, bias: Tensor | None) -> bool:
    """Whether inputs are such as kernels take; `dtype` is that of the layer."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    plain = x.is_cpu and x.dtype == dtype and x.dtype in DTYPES and x.numel() > 0
    return plain and not torch.compiler.is_compiling()


class Ready:
    """The kernels of one layer that were called, made from its tensors as they were then."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[int, torch.dtype, int], str] = {}
        self._kernels: dict[tuple[str, torch.dtype], Kernel] = {}
        self._of: tuple[object, ...] = ()

    def __deepcopy__(self, memo: object) -> "Ready":
        return Ready()

    def __reduce__(self) -> tuple[Callable[[], "Ready"], tuple[()]]:
        # What a library packed stays in its process.
        return Ready, ()

    @property
    def nbytes(self) -> int:
        """What the kernels keep."""
        return sum(kernel.nbytes for kernel in self._kernels.values())

    @property
    def names(self) -> dict[int, str]:
        """The kernels that were called, by the number of rows that they were measured for."""
        return {rows: name for (rows, _, _), name in sorted(self._chosen.items(), key=lambda item: item[0][0])}

    def kernel(
        self,
        made_from: Sequence[Tensor],
        rows: int,
        dtype: torch.dtype,
        choose: Callable[[], Choice | None],
        make: Callable[[str], Kernel],
    ) -> Kernel | None:
        """The kernel of `choose` for so many rows, made once of the tensors that it is `made_from`; None to decode."""
        asked = (measured_rows(rows), dtype, torch.get_num_threads())
        if asked not in self._chosen:
            choice = choose()
            self._chosen[asked] = DECODED if choice is None else choice.kernel
        name = self._chosen[asked]
        if name == DECODED:
            return None
        of = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in made_from)
        if of != self._of:
            self._kernels, self._of = {}, of
        if (name, dtype) not in self._kernels:
            self._kernels[name, dtype] = make(name)
        return self._kernels[name, dtype]
