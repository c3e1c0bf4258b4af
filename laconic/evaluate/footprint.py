"""Count multiply-accumulates, bytes of weights and peak memory of a forward pass.

Peak memory is the largest total size of live tensors, weights included. On a GPU, torch's allocator counts it. On a
CPU, every tensor that an operation returns is tracked until it is freed. Other memory (the interpreter, libraries,
workspace inside an operation) is not counted, as it hardly depends on the model.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from laconic.calibrate.passes import evaluating, forward
from laconic.formats import Format, PackedCodes, weight_macs
from laconic.model import Batch, Group, LanguageModel


def count_macs(lm: LanguageModel, inputs: Batch) -> int:
    """Multiply-accumulates of one forward pass: of all linear layers, and of the products in attention.

    A linear layer (or the format that replaces it) counts its weights once for each row that it multiplies. Products of
    queries with keys and of scores with values are counted as executed, including masked positions.

    Args:
        lm: the model.
        inputs: the batch of the forward pass.
    """
    counted = 0

    def count(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        nonlocal counted
        counted += weight_macs(module) * output.shape[:-1].numel()

    # A format with several paths gets a single hook; otherwise each call would be counted several times.
    hooks = [module.register_forward_hook(count) for module in dict.fromkeys(_outermost_layers(lm.model))]
    try:
        # Eager attention consists of batched matrix products, which are counted. A fused kernel might not be counted.
        with (
            evaluating(lm),
            _without_gradients(lm.model),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            forward(lm, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    products = counter.get_flop_counts()["Global"]
    return counted + sum(products.get(kind, 0) for kind in (torch.ops.aten.bmm, torch.ops.aten.baddbmm)) // 2


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Within the block no parameter requires a gradient, because the counter fails on DeBERTa's positions otherwise."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def _outermost_layers(module: nn.Module) -> list[nn.Module]:
    """The linear layers and formats in a module, without the layers inside a format."""
    if isinstance(module, (nn.Linear, Conv1D, Format)):
        return [module]
    return [found for child in module.children() for found in _outermost_layers(child)]


def weight_bytes(lm: LanguageModel) -> int:
    """Bytes of parameters and buffers in memory, including copies that kernels keep.

    Args:
        lm: the model. Tensors with shared memory count once.
    """
    kept = sum(layer.kernel_nbytes for layer in lm.model.modules() if isinstance(layer, PackedCodes))
    return sum(storage.nbytes() for storage in _storages(lm).values()) + kept


def peak_bytes(lm: LanguageModel, inputs: Batch) -> int:
    """The largest total size of live tensors during a forward pass in bytes, including weights and inputs.

    Args:
        lm: the model.
        inputs: the batch of the forward pass.
    """
    with evaluating(lm), torch.no_grad():
        if lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(lm.device)
            others = torch.cuda.memory_allocated(lm.device) - weight_bytes(lm) - _bytes_of(inputs)
            forward(lm, inputs)
            return torch.cuda.max_memory_allocated(lm.device) - others
        with _LiveBytes() as alive:
            forward(lm, inputs)
    return weight_bytes(lm) + _bytes_of(inputs) + alive.peak


def _bytes_of(inputs: Batch) -> int:
    return sum({id(tensor): tensor.nbytes for tensor in inputs.values()}.values())


def _storages(lm: LanguageModel) -> dict[int, torch.UntypedStorage]:
    # An empty tensor may have the same address as the next tensor in a file.
    beside = () if lm.pipeline is None else lm.pipeline.parameters()
    tensors = [tensor for tensor in (*lm.model.parameters(), *lm.model.buffers(), *beside) if tensor.numel()]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}


class _LiveBytes(TorchDispatchMode):
    """Tracks the total size of the tensors that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        arguments = {storage.data_ptr() for storage in _storages_in((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages_in(result):
            # A view of an argument does not allocate memory.
            if storage.data_ptr() not in arguments and storage not in self._seen:
                self._seen.add(storage)
                size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, size)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages_in(values: Any) -> list[torch.UntypedStorage]:
    """The storages of all tensors. Tensors packed by oneDNN have no storage; kernels count those themselves."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if not tensor.is_mkldnn]


OTHER = "other"
"""The part for norms, biases, positions, and matrices that are in no group."""
ORDER = (Group.EMBEDDING, Group.ATTENTION, Group.FFN, Group.HEAD)
"""The order in which parts are counted: a head that is tied to the embedding counts as embedding."""


def bytes_by_part(lm: LanguageModel) -> dict[str, int]:
    """Bytes of word embeddings, attention, feed-forwards, head and everything else, in the stored dtype.

    A tensor that several modules share counts once, for the first of them.
    """
    sites = sorted(lm.sites(("all",)), key=lambda site: ORDER.index(site.group))
    parts = dict.fromkeys((group.value for group in ORDER), 0)
    counted: set[int] = set()
    for site in sites:
        if id(site.parameter) not in counted:
            counted.add(id(site.parameter))
            parts[site.group.value] += lm.site_nbytes(site)
    return {**parts, OTHER: lm.size()[1] - sum(parts.values())}
