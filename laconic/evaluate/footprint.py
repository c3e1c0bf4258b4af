"""Measure what a forward pass uses: multiply-accumulates, memory and energy; and count the bytes of weights.

Peak memory is the largest total size of live tensors, weights included. On a GPU, torch's allocator counts it. On a
CPU, every tensor that an operation returns is tracked until it is freed. Other memory (the interpreter, libraries,
workspace inside an operation) is not counted, as it hardly depends on the model.

Energy is read from counters of the hardware: RAPL for the CPU on Linux, NVML for an NVIDIA GPU. Both count the energy
of the whole CPU or GPU, so that results are valid only if nothing else runs. If there is no counter, or only an
administrator may read it, no energy is reported.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from laconic.calibrate.passes import evaluating, forward, read_clock
from laconic.formats import Format, PackedCodes, weight_macs
from laconic.formats.expert_layer import find_expert_stacks, is_experts, routed_arguments
from laconic.formats.packed_stack import PackedStack
from laconic.model import Batch, Group, LanguageModel


def count_macs(lm: LanguageModel, inputs: Batch) -> int:
    """Multiply-accumulates of one forward pass: of all linear layers, and of the products in attention.

    A linear layer (or the format that replaces it) counts its weights once for each row that it multiplies. An expert
    of a mixture counts its weights once for each token that reads it. Products of queries with keys and of scores with
    values are counted as executed, including masked positions.

    Args:
        lm: the model.
        inputs: the batch of the forward pass.
    """
    counted = 0

    def count(module: nn.Module, args: tuple[Any, ...], output: Tensor | tuple[Any, ...]) -> None:
        nonlocal counted
        # Some routers are linear layers that return a tuple.
        rows = output if isinstance(output, Tensor) else args[0]
        counted += weight_macs(module) * rows.shape[:-1].numel()

    def count_experts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Tensor) -> None:
        nonlocal counted
        _, index, _ = routed_arguments(args, kwargs)
        counted += index.numel() * sum(stack.macs() for stack in find_expert_stacks(module).values())

    # A format with several paths gets a single hook; otherwise each call would be counted several times.
    hooks = [
        module.register_forward_hook(count_experts, with_kwargs=True)
        if is_experts(module)
        else module.register_forward_hook(count)
        for module in dict.fromkeys(_outermost_layers(lm.model))
    ]
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
    """The linear layers, formats and modules of experts in a module, without the layers inside them."""
    if isinstance(module, (nn.Linear, Conv1D, Format)) or is_experts(module):
        return [module]
    return [layer for child in module.children() for layer in _outermost_layers(child)]


def weight_bytes(lm: LanguageModel) -> int:
    """Bytes of parameters and buffers in memory, including copies that kernels keep.

    Args:
        lm: the model. Tensors with shared memory count once.
    """
    copies = sum(layer.kernel_nbytes for layer in lm.model.modules() if isinstance(layer, (PackedCodes, PackedStack)))
    return sum(storage.nbytes() for storage in _storages(lm).values()) + copies


def peak_bytes(lm: LanguageModel, inputs: Batch) -> int:
    """The largest total size of live tensors during a forward pass in bytes, including weights and inputs.

    Args:
        lm: the model.
        inputs: the batch of the forward pass.
    """
    with evaluating(lm), torch.no_grad():
        if lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(lm.device)
            unrelated = torch.cuda.memory_allocated(lm.device) - weight_bytes(lm) - _bytes_of(inputs)
            forward(lm, inputs)
            return torch.cuda.max_memory_allocated(lm.device) - unrelated
        with _LiveBytes() as live:
            forward(lm, inputs)
    return weight_bytes(lm) + _bytes_of(inputs) + live.peak


def _bytes_of(inputs: Batch) -> int:
    return sum({id(tensor): tensor.nbytes for tensor in inputs.values()}.values())


def _storages(lm: LanguageModel) -> dict[int, torch.UntypedStorage]:
    # An empty tensor may have the same address as the next tensor in a file.
    pipeline = () if lm.pipeline is None else lm.pipeline.parameters()
    tensors = [tensor for tensor in (*lm.model.parameters(), *lm.model.buffers(), *pipeline) if tensor.numel()]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}


class _LiveBytes(TorchDispatchMode):
    """Tracks the total size of the tensors that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
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
                self.current += size
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._release, size)
        return result

    def _release(self, size: int) -> None:
        self.current -= size


def _storages_in(values: Any) -> list[torch.UntypedStorage]:
    """The storages of all tensors. Tensors packed by oneDNN have no storage; kernels count those themselves."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if not tensor.is_mkldnn]


OTHER = "other"
"""The part for norms, biases, positions, and matrices that are in no group."""
PART_ORDER = (Group.EMBEDDING, Group.ATTENTION, Group.FFN, Group.EXPERTS, Group.HEAD)
"""The order in which parts are counted: a head that is tied to the embedding counts as embedding."""


def bytes_by_part(lm: LanguageModel) -> dict[str, int]:
    """Bytes of word embeddings, attention, feed-forwards, experts, head and everything else, in the stored dtype.

    Only a mixture has the part of its experts.

    A tensor that several modules share counts once, for the first of them.
    """
    sites = sorted(lm.sites(("all",)), key=lambda site: PART_ORDER.index(site.group))
    present = {site.group for site in sites}
    parts = {group.value: 0 for group in PART_ORDER if group is not Group.EXPERTS or group in present}
    counted: set[Hashable] = set()
    for site in sites:
        if site.storage not in counted:
            counted.add(site.storage)
            parts[site.group.value] += lm.site_nbytes(site)
    return {**parts, OTHER: lm.size()[1] - sum(parts.values())}


POWERCAP = Path("/sys/class/powercap")
METER_SECONDS, MIN_PASSES = 1.0, 3
"""The least seconds and the least number of repetitions of a pass; counters are updated about once a millisecond."""


class Meter(ABC):
    """A counter of energy."""

    @abstractmethod
    def joules(self) -> float:
        """Joules since a fixed but arbitrary moment."""


class Rapl(Meter):
    """RAPL counters of all CPU packages. Each wraps around to 0 after `max_energy_range_uj`."""

    def __init__(self, packages: tuple[Path, ...]) -> None:
        self._packages = packages
        self._last = dict.fromkeys(packages, 0)
        self._microjoules = 0
        self.joules()
        self._microjoules = 0

    def joules(self) -> float:
        for package in self._packages:
            count = int((package / "energy_uj").read_text())
            change = count - self._last[package]
            self._microjoules += change if change >= 0 else change + int((package / "max_energy_range_uj").read_text())
            self._last[package] = count
        return self._microjoules / 1e6


class Nvml(Meter):
    """The counter of one NVIDIA GPU."""

    def __init__(self, nvml: Any, device: torch.device) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def joules(self) -> float:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3


def find_meter(device: torch.device, powercap: Path = POWERCAP) -> Meter | None:
    """Find the energy counter of a device.

    Args:
        device: a GPU or the CPU.
        powercap: the folder in which Linux has the counters of the CPU.

    Returns:
        The counter; None if there is none, or if only an administrator may read it.
    """
    if device.type == "cuda":
        return _find_nvml(device)
    packages = tuple(zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1)
    try:
        return Rapl(packages) if packages else None
    except OSError:
        # Since CVE-2020-8694, Linux allows only administrators to read these counters.
        return None


def _find_nvml(device: torch.device) -> Meter | None:
    if find_spec("pynvml") is None:
        return None
    nvml = import_module("pynvml")
    try:
        meter = Nvml(nvml, device)
        meter.joules()
    except nvml.NVMLError:
        # GPUs before Volta have no counter, and a container may lack the driver library.
        return None
    return meter


def measure_joules(work: Callable[[], object], device: torch.device, meter: Meter) -> float:
    """The energy of running a function once in joules: the mean over repetitions for at least a second.

    Args:
        work: the function. On a GPU, the measurement ends when its kernels have finished.
        device: the device on which it runs.
        meter: the counter of that device.
    """
    start, before, passes = read_clock(device), meter.joules(), 0
    while passes < MIN_PASSES or read_clock(device) - start < METER_SECONDS:
        work()
        passes += 1
    read_clock(device)
    return (meter.joules() - before) / passes
