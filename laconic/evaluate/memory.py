"""Peak memory of a forward pass: the bytes of all tensors alive at once, weights included.

On a GPU it is what torch's allocator saw. On a CPU torch keeps no such count, so every tensor that an operation returns
is followed until it is freed. What is not a tensor (the interpreter, libraries, work space inside one operation) is
not counted: it hardly depends on the model.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from laconic.calibrate.passes import evaluating, forward
from laconic.formats import PackedCodes
from laconic.model import Batch, LanguageModel


def weight_bytes(lm: LanguageModel) -> int:
    """Bytes of the parameters and buffers as they are in memory, each once, and of what kernels made of them."""
    kept = sum(layer.kernel_nbytes for layer in lm.model.modules() if isinstance(layer, PackedCodes))
    return sum(storage.nbytes() for storage in _storages(lm).values()) + kept


def peak_bytes(lm: LanguageModel, inputs: Batch) -> int:
    """The most bytes of tensors alive at any moment of one forward pass, weights and inputs included."""
    with evaluating(lm), torch.no_grad():
        if lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(lm.device)
            others = torch.cuda.memory_allocated(lm.device) - weight_bytes(lm) - _bytes_of(inputs)
            forward(lm, inputs)
            return torch.cuda.max_memory_allocated(lm.device) - others
        with _Alive() as alive:
            forward(lm, inputs)
    return weight_bytes(lm) + _bytes_of(inputs) + alive.peak


def _bytes_of(inputs: Batch) -> int:
    return sum({id(tensor): tensor.nbytes for tensor in inputs.values()}.values())


def _storages(lm: LanguageModel) -> dict[int, torch.UntypedStorage]:
    # An empty tensor may have the address of the tensor that follows it in a file.
    beside = () if lm.pipeline is None else lm.pipeline.parameters()
    tensors = [tensor for tensor in (*lm.model.parameters(), *lm.model.buffers(), *beside) if tensor.numel()]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until they are freed."""

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
            # A view of an argument is no new memory.
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
    """Of all tensors but those that oneDNN packed, which show none; a kernel that keeps one counts its bytes."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if not tensor.is_mkldnn]
