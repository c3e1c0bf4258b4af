"""Integers times a scale, plus a shift, row by row."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.jit._trace import is_tracing

WORD = torch.int64.itemsize


def scale_rows(
    codes: Integer[Tensor, "rows columns"], scale: Float[Tensor, " rows"], shift: Float[Tensor, " rows"]
) -> Float[Tensor, "rows columns"]:
    """scale · code + shift in fp32.

    On a CPU this is a function that torch has for quantized embeddings, which converts, scales and shifts in one pass.

    Args:
        codes: integers.
        scale: of each row, in fp32.
        shift: of each row, in fp32.

    Example:
        >>> scale_rows(torch.tensor([[0, 3]], dtype=torch.uint8), torch.tensor([0.5]), torch.tensor([-1.0]))
        tensor([[-1.0000,  0.5000]])
    """
    plain = codes.dtype != torch.uint8 or not codes.is_cpu or torch.compiler.is_compiling() or is_tracing()
    if plain or not codes.numel():
        return (codes * scale[:, None]).add_(shift[:, None])
    # A row of the embedding is its codes, and the bytes of its scale and its shift.
    count, columns = codes.shape
    rows = codes.new_empty(count, columns + 2 * scale.itemsize)
    if columns % WORD == 0 and codes.is_contiguous() and codes.storage_offset() % WORD == 0:
        # Copies of short rows are much faster in words than in bytes.
        rows.view(torch.int64)[:, :-1] = codes.view(torch.int64)
        numbers = rows.view(torch.float32)
        numbers[:, -2], numbers[:, -1] = scale, shift
    else:
        rows[:, :columns], rows[:, columns:] = codes, torch.stack((scale, shift), dim=1).view(torch.uint8)
    return torch.ops.quantized.embedding_bag_byte_unpack(rows)
