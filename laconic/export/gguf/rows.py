"""The order of the rows of queries and keys in a GGUF file."""

import torch
from jaxtyping import Int
from torch import Tensor

from laconic.export.gguf.architectures import RowOrder


def file_rows(order: RowOrder, heads: int, groups: int, size: int) -> Int[Tensor, " rows"]:
    """For each row in the file, the row in transformers.

    Args:
        order: the order in the file.
        heads: the number of heads in the matrix; with `QUERIES_KEYS_VALUES` those of queries.
        groups: the number of heads of keys and of values; `PAIRS` does not use it.
        size: rows of a head.

    Example:
        >>> file_rows(RowOrder.PAIRS, heads=1, groups=1, size=4).tolist()
        [0, 2, 1, 3]
        >>> file_rows(RowOrder.QUERIES_KEYS_VALUES, heads=2, groups=2, size=1).tolist()
        [0, 3, 1, 4, 2, 5]
    """
    if order is RowOrder.PAIRS:
        return torch.arange(heads * size).view(heads, 2, size // 2).transpose(1, 2).reshape(-1)
    grouped = torch.arange((heads + 2 * groups) * size).view(groups, heads // groups + 2, size)
    queries, keys, values = grouped.split((heads // groups, 1, 1), 1)
    return torch.cat([part.reshape(-1) for part in (queries, keys, values)])
