"""A linear layer in the form of a checkpoint of codes of another library."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic.formats import DynamicInt8, Quantized


class CodedLinear(nn.Module, ABC):
    """A linear layer whose buffers are the tensors of the exported file.

    Args:
        layer: the quantized layer.
        dtype: the dtype of the model.

    Attributes:
        scale_rounding: the norm of the change of the scales due to rounding, as a fraction of their norm.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: Quantized | DynamicInt8, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.shape = dtype, layer.shape
        self.scale_rounding = 0.0
        bias = layer.bias
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @abstractmethod
    def dense(self) -> Float[Tensor, "out in"]:
        """The matrix in the dtype of the model, decoded from the stored tensors."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors in the file, without the bias."""
        return sum(buffer.nbytes for buffer in self.buffers())


def repeat_groups(numbers: Float[Tensor, "m k"], rows: int, columns: int, group: int | None) -> Tensor:
    """The scale or zero point of each stored group: one for all rows is repeated, and so is that of a larger group.

    Args:
        numbers: of each group of laconic.
        rows: the rows of the matrix.
        columns: its columns.
        group: columns of a stored group; None for whole rows.

    Example:
        >>> repeat_groups(torch.tensor([[1.0, 2.0]]), rows=1, columns=8, group=2).tolist()
        [[1.0, 1.0, 2.0, 2.0]]
    """
    groups = 1 if group is None else columns // group
    return numbers.expand(rows, -1).repeat_interleave(groups // numbers.shape[1], dim=1).contiguous()
