"""Multiply-accumulates of a forward pass, from the layers that really run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from laconic.calibrate.passes import evaluating, forward
from laconic.formats import Format, weight_macs
from laconic.model import Batch, LanguageModel


def macs(lm: LanguageModel, inputs: Batch) -> int:
    """Multiply-accumulates of one forward pass: of every linear, and of the products of attention.

    A linear (or the format in its place) counts its weights once for every row that it really multiplies. The products
    of queries with keys and of scores with values are counted as executed, masked halves included.
    """
    counted = 0

    def count(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        nonlocal counted
        counted += weight_macs(module) * output.shape[:-1].numel()

    # A format that stands in several places is met once for each, and would count as often at every call.
    hooks = [module.register_forward_hook(count) for module in dict.fromkeys(_outermost(lm.model))]
    try:
        # The plain attention is made of batched products, which the counter sees; a fused one it may not know.
        with evaluating(lm), _frozen(lm.model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            forward(lm, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    products = counter.get_flop_counts()["Global"]
    return counted + sum(products.get(kind, 0) for kind in (torch.ops.aten.bmm, torch.ops.aten.baddbmm)) // 2


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Nothing that could have a gradient: the counter asks such arguments (DeBERTa's positions) for their graph."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def _outermost(module: nn.Module) -> list[nn.Module]:
    """The linears and formats in `module`, by place; what a format is made of is the format's to count."""
    if isinstance(module, (nn.Linear, Conv1D, Format)):
        return [module]
    return [found for child in module.children() for found in _outermost(child)]
