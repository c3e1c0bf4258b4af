"""The rows of queries, keys and values in one fused matrix."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from laconic.model.anatomy.parts import FusedLayout


class FusedRows(NamedTuple):
    """The row numbers of each head in a fused matrix."""

    query: Int[Tensor, "heads size"]
    key: Int[Tensor, "key_heads size"]
    value: Int[Tensor, "key_heads size"]


def fused_rows(layout: FusedLayout, heads: int, key_heads: int, size: int) -> FusedRows:
    """The rows of a fused matrix.

    Args:
        layout: as in `Attention.fused_layout`.
        heads: the number of heads.
        key_heads: the number of key heads; each is shared by as many heads.
        size: the size of one head.

    Example:
        >>> fused_rows("stacked", heads=2, key_heads=1, size=1)
        FusedRows(query=tensor([[0],
                [1]]), key=tensor([[2]]), value=tensor([[3]]))
    """
    if layout == "stacked":
        rows = torch.arange((heads + 2 * key_heads) * size).view(-1, size)
        return FusedRows(*rows.split((heads, key_heads, key_heads)))
    rows = torch.arange((heads + 2 * key_heads) * size).view(key_heads, -1, size)
    return FusedRows(rows[:, :-2].flatten(0, 1), rows[:, -2], rows[:, -1])


def count_key_heads(rows: int, heads: int, size: int) -> int:
    """The number of key heads in a fused matrix.

    Args:
        rows: the rows of the matrix.
        heads: the number of heads.
        size: the size of one head.

    Example:
        >>> count_key_heads(rows=64, heads=4, size=8)
        2
    """
    return (rows // size - heads) // 2
