"""Count the parameters of modules, compressed or not, and their bytes on disk."""

import torch
from torch import nn

from laconic.formats import Masked, PackedCodes
from laconic.formats.packed_stack import PackedStack
from laconic.formats.sparse_stack import SparseStack


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module, each tensor once, without the zeros of a pruned matrix.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return module_size(module, torch.float32)[0]


def module_size(module: nn.Module, dtype: torch.dtype) -> tuple[int, int]:
    """Return the number of parameters of a module and their bytes on disk, each tensor once.

    Zeros of a pruned matrix do not count as parameters, but its mask counts for the bytes.

    Args:
        module: a model or a part of one.
        dtype: the dtype in which floating-point tensors are stored.

    Example:
        >>> module_size(nn.Linear(3, 2), torch.float16)
        (8, 16)
    """
    masked = [part for part in module.modules() if isinstance(part, Masked)]
    masked_stacks = [part for part in module.modules() if isinstance(part, SparseStack)]
    coded = [part for part in module.modules() if isinstance(part, (PackedCodes, PackedStack))]
    plain = sum(parameter.numel() for parameter in module.parameters() if parameter.is_floating_point())
    plain -= sum(layer.out_features * layer.in_features - layer.count for layer in masked)
    plain -= sum(stack.experts * (stack.shape[0] * stack.shape[1] - stack.kept) for stack in masked_stacks)
    packed = sum(layer.index_nbytes for layer in masked) + sum(layer.nbytes() for layer in coded)
    packed += sum(stack.index_nbytes for stack in masked_stacks)
    # The values of experts that keep fewer weights than others are filled up with zeros on disk.
    filled = sum(stack.experts * stack.kept - stack.count for stack in masked_stacks)
    return plain - filled + sum(layer.count for layer in coded), plain * dtype.itemsize + packed
