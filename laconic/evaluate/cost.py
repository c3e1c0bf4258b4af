"""Measure the cost of a model: parameters, bytes on disk and in memory, multiply-accumulates, latency, peak memory."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from laconic.calibrate.batching import max_positions
from laconic.calibrate.passes import describe_machine, evaluating, forward, random_batch
from laconic.errors import must_be
from laconic.evaluate.footprint import bytes_by_part, count_macs, find_meter, measure_joules, peak_bytes, weight_bytes
from laconic.evaluate.timing import Generation, Latency, generates_text, latency, measure_generation
from laconic.formats import PackedCodes
from laconic.formats.packed_stack import PackedStack
from laconic.model import LanguageModel
from laconic.model.active_parameters import count_active
from laconic.progress import Track, silent
from laconic.runtime import EAGER, Service, check_runtime, serve
from laconic.store import file_bytes
from laconic.store.folder import pipeline_bytes, to_dtype
from laconic.store.structure import stored_tensors
from laconic.typed import Typed

BATCHES = (1, 8)
LENGTHS = (128,)

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Conditions(metaclass=Typed):
    """The conditions for timing a model. Each batch size is combined with each length.

    Args:
        batch: batch sizes, in rows.
        length: lengths of a row in tokens. A length above the maximum of the model is reduced to it.
        runtime: the runtime for measuring cost and quality.

    Raises:
        UserError: the runtime is unknown, or its libraries are missing.
    """

    name: ClassVar[str] = "conditions"

    batch: tuple[Count, ...] = BATCHES
    length: tuple[Count, ...] = LENGTHS
    runtime: str = EAGER

    def __post_init__(self) -> None:
        for name, counts in {"batch": self.batch, "length": self.length}.items():
            if not counts:
                raise must_be(name, "a list of at least one whole number", [])
        check_runtime(self.runtime)

    @classmethod
    def of(cls, cost: "bool | Conditions") -> "Conditions":
        """`cost` itself if it is a `Conditions`, else the default conditions."""
        return cls() if isinstance(cost, bool) else cost


NO_CACHE = "The speed of generation was not measured: the model has no key-value cache."


@dataclass(frozen=True)
class Speed:
    """The cost of a forward pass at one batch size and length.

    Args:
        latency: the time.
        macs: the number of multiply-accumulates.
        peak_bytes: the peak size of all live tensors in bytes; None for a runtime other than torch.
        joules: the energy of one pass; None if the machine has no readable energy counter.
    """

    latency: Latency
    macs: int
    peak_bytes: int | None
    joules: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.latency.to_json(),
            "macs": self.macs,
            "macs_per_token": self.macs / self.latency.tokens,
            "peak_bytes": self.peak_bytes,
            **({} if self.joules is None else {"joules": self.joules}),
        }


@dataclass(frozen=True)
class Cost:
    """The cost of a model.

    Args:
        parameters: the number of parameters. A shared matrix counts once; pruned weights do not count.
        bytes: the size of the safetensors files; computed if the model is not saved.
        memory_bytes: the size of the weights in memory, in `dtype`.
        dtype: the dtype of the weights in memory.
        parts: bytes in the stored dtype by part: word embeddings, attention, feed-forwards, head, everything else.
        speeds: the cost of forward passes, for each batch size and length.
        generations: the speed of generating text, for each batch size and length. Empty for a model that does not
            generate text, and for runtimes other than torch.
        missing: sentences about measurements that were not possible.
        runtime: the name of the runtime, its library, and the bytes of the exported model.
        machine: the hardware and settings that timings depend on. `int8`, `int4` and `codes` (more than 4 bits) are
            the number of quantized layers by kernel.
        active_parameters: the number of parameters that a token uses in a mixture of experts; None for other models.
    """

    parameters: int
    bytes: int
    memory_bytes: int
    dtype: str
    parts: dict[str, int]
    speeds: tuple[Speed, ...]
    generations: tuple[Generation, ...]
    missing: tuple[str, ...]
    runtime: dict[str, Any]
    machine: dict[str, Any]
    active_parameters: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The cost as JSON values; `latency` is in seconds, `throughput` in tokens per second."""
        return {
            "parameters": self.parameters,
            **({} if self.active_parameters is None else {"active_parameters": self.active_parameters}),
            "bytes": self.bytes,
            "memory_bytes": self.memory_bytes,
            "dtype": self.dtype,
            "parts": self.parts,
            "latency": [speed.to_json() for speed in self.speeds],
            **({"generation": [generation.to_json() for generation in self.generations]} if self.generations else {}),
            **({"missing": list(self.missing)} if self.missing else {}),
            "runtime": self.runtime,
            "machine": self.machine,
        }


def measure_cost(
    lm: LanguageModel,
    folder: Path | None = None,
    batch_sizes: Sequence[int] = BATCHES,
    lengths: Sequence[int] = LENGTHS,
    *,
    service: Service | None = None,
    track: Track = silent,
) -> Cost:
    """Measure the cost of a model.

    Args:
        lm: the model, with weights.
        folder: the folder of the saved model, for the size of its files; None to compute the size.
        batch_sizes: batch sizes, in rows.
        lengths: lengths of a row in tokens. A length above the maximum of the model is reduced to it.
        service: the model in another runtime, for timing; None for torch.
        track: reports progress.
    """
    service = serve(lm) if service is None else service
    longest = max_positions(lm)
    # Lengths that are reduced to the same maximum are measured once.
    lengths = tuple(dict.fromkeys(length if longest is None else min(length, longest) for length in lengths))
    grid = [(batch, length) for length in lengths for batch in batch_sizes]
    measured = [
        _measure_speed(lm, service, batch, length, track)
        for batch, length in track(grid, "cost", [float(batch * length) for batch, length in grid])
    ]
    generations = tuple(generation for _, generation in measured if generation is not None)
    parameters = lm.size()[0]
    active = count_active(lm.model, parameters)
    return Cost(
        parameters=parameters,
        active_parameters=None if active is None else active.active,
        bytes=stored_bytes(lm) if folder is None else file_bytes(folder),
        memory_bytes=weight_bytes(lm),
        dtype=str(lm.model.dtype).removeprefix("torch."),
        parts=bytes_by_part(lm),
        speeds=tuple(speed for speed, _ in measured),
        generations=generations,
        missing=(NO_CACHE,) if generates_text(lm) and service.runtime == EAGER and not generations else (),
        runtime=service.describe(),
        machine={**describe_machine(lm.device), **_count_kernels(lm)},
    )


def _count_kernels(lm: LanguageModel) -> dict[str, dict[str, int]]:
    """The number of quantized layers that used each kernel, by family of kernels (`int8`, `int4`, `codes`)."""
    used: dict[str, Counter[str]] = {}
    modules = list(lm.model.modules())
    experts = [matrix for module in modules if isinstance(module, PackedStack) for matrix in module.cached_slices]
    for layer in (*modules, *experts):
        if isinstance(layer, PackedCodes) and layer.kernel_family is not None and layer.kernel_names:
            names = (f"{rows} rows: {kernel}" for rows, kernel in layer.kernel_names.items())
            used.setdefault(layer.kernel_family.label, Counter()).update(names)
    return {label: dict(sorted(counts.items())) for label, counts in used.items()}


def stored_bytes(lm: LanguageModel) -> int:
    """The size of the safetensors files that saving the model in its dtype would write; or of those of another library.

    Returns:
        Bytes of all tensors and of the headers of the files. Shared tensors count once.
    """
    if lm.file_sizes is not None:
        return lm.file_sizes.total
    sizes: dict[tuple[int, int], int] = {}
    index: dict[str, Any] = {}
    for name, tensor in stored_tensors(to_dtype(lm.model, lm.dtype)).items():
        # Empty tensors may have the same address, but they have no bytes.
        key = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() == 0 or key not in sizes:
            start = sum(sizes.values())
            sizes[key] = tensor.nbytes
            index[name] = {
                "dtype": "F32",
                "shape": list(tensor.shape),
                "data_offsets": [start, start + sizes[key]],
            }
    header = len(json.dumps(index, separators=(",", ":")))
    return sum(sizes.values()) + header + (0 if lm.pipeline is None else pipeline_bytes(lm.pipeline))


def _measure_speed(
    lm: LanguageModel, service: Service, batch: int, length: int, track: Track
) -> tuple[Speed, Generation | None]:
    """Count the operations of `lm` in torch, and time the model of `service`."""
    inputs = random_batch(lm, batch, length)
    timed = latency(service.lm, batch, length, track=track)
    peak = peak_bytes(lm, inputs) if service.runtime == EAGER else None
    generation = measure_generation(lm, batch, length, track=track) if service.runtime == EAGER else None
    macs, meter = count_macs(lm, inputs), find_meter(service.lm.device)
    joules = None
    if meter is not None:
        with evaluating(service.lm), torch.inference_mode():
            joules = measure_joules(lambda: forward(service.lm, inputs), service.lm.device, meter)
    return Speed(timed, macs, peak, joules), generation
