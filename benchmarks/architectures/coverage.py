"""The matrices in the blocks of a model, found without laconic: those that a run over text multiplies by."""

from collections.abc import Mapping, Set

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.architectures.inputs import batch_for


def matrices_in_blocks(model: PreTrainedModel) -> dict[str, int]:
    """The number of elements of each matrix in a list of modules, by name, if the outputs depend on it.

    Embeddings are left out, and so are layers that a run over text does not reach, such as a tower of images.

    Args:
        model: a model that is not used afterwards: some keep states of their last run.
    """
    tensors = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    # RWKV changes its weights in place when it is evaluated, which the backward pass does not allow.
    model.train()
    outputs = [tensor for tensor in model(**batch_for(model)).values() if _has_gradient(tensor)]
    total = torch.stack([tensor.double().square().sum() for tensor in outputs]).sum()
    reached = torch.autograd.grad(total, list(tensors.values()), allow_unused=True)
    lists = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    embeddings = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {
        name: tensor.numel()
        for (name, tensor), gradient in zip(tensors.items(), reached, strict=True)
        if gradient is not None and tensor.dim() > 1 and name.startswith(lists)
        if name.rpartition(".")[0] not in embeddings
    }


def _has_gradient(output: object) -> bool:
    return isinstance(output, Tensor) and output.requires_grad


def share_compressed(matrices: Mapping[str, int], sites: Set[str]) -> float:
    """The share of the elements that the sites hold.

    Args:
        matrices: the result of `matrices_in_blocks`.
        sites: paths of modules, or of parameters that hold the matrices of all experts.
    """
    covered = sum(count for name, count in matrices.items() if name in sites or name.rpartition(".")[0] in sites)
    return covered / sum(matrices.values())
