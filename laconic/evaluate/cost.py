"""What a model costs: parameters, bytes on disk and in memory, multiply-accumulates, latency, peak memory."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from laconic.calibrate.batching import positions
from laconic.calibrate.passes import evaluating, forward, machine, random_batch
from laconic.errors import must_be
from laconic.evaluate.footprint import bytes_by_part, count_macs, peak_bytes, weight_bytes
from laconic.evaluate.generation import Generation, generates_text, measure_generation
from laconic.evaluate.timing import Latency, find_meter, latency, measure_joules
from laconic.formats import PackedCodes
from laconic.model import Batch, LanguageModel
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
    """Under which conditions a model is timed: every batch size with every length.

    Args:
        batch: rows of a batch.
        length: tokens of a row; one beyond what the model can read is cut to that.
        runtime: what runs the model, for its cost and for its quality.

    Raises:
        UserError: there is no such runtime, or its libraries are missing.
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
        """`cost` itself where it has conditions, else the default ones."""
        return cls() if isinstance(cost, bool) else cost


NO_CACHE = "The speed of writing was not measured: the model keeps no keys and values of the tokens before."


@dataclass(frozen=True)
class Speed:
    """What a forward pass of one batch size and length costs.

    Args:
        latency: seconds.
        macs: multiply-accumulates.
        peak_bytes: bytes of all tensors alive at the peak; None in another runtime than torch.
        joules: energy of one pass; None where the machine does not count it.
    """

    latency: Latency
    macs: int
    peak_bytes: int | None
    joules: float | None = None

    def to_json(self) -> dict[str, Any]:
        seconds = self.latency
        return {
            **asdict(seconds),
            "throughput": seconds.throughput,
            "macs": self.macs,
            "macs_per_token": self.macs / (seconds.batch * seconds.length),
            "peak_bytes": self.peak_bytes,
            **({} if self.joules is None else {"joules": self.joules}),
        }


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Args:
        parameters: number of parameters; a shared matrix counts once, a pruned weight not at all.
        bytes: size on disk of the safetensors files, or what it would be.
        memory_bytes: size of the weights in memory, in `dtype`.
        dtype: of the weights in memory.
        parts: bytes in the stored dtype by part: word embeddings, attention, feed-forwards, head, everything else.
        speeds: forward passes, by batch size and length.
        generations: speed of generating text, by batch size and length; empty for models that do not generate, and in
            other runtimes than torch.
        missing: sentences about what could not be measured.
        runtime: what ran the model, and the bytes of what was exported for it.
        machine: what the timings depend on; `int8` and `int4` count layers by the kernel that ran for so many rows.
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

    def to_json(self) -> dict[str, Any]:
        """Seconds in `latency`; `throughput` in tokens a second."""
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "memory_bytes": self.memory_bytes,
            "dtype": self.dtype,
            "parts": self.parts,
            "latency": [speed.to_json() for speed in self.speeds],
            **({"generation": [one.to_json() for one in self.generations]} if self.generations else {}),
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
    """Measure what a model costs.

    Args:
        lm: the model, with weights.
        folder: where it is saved, whose files count as its bytes; None computes what the files would take.
        batch_sizes: rows of a batch.
        lengths: tokens of a row; one beyond what the model can read is cut to that.
        service: what runs the model; None for torch.
        track: shows progress.
    """
    service = serve(lm) if service is None else service
    longest = positions(lm)
    # Two that are cut to the same are one.
    lengths = tuple(dict.fromkeys(length if longest is None else min(length, longest) for length in lengths))
    grid = [(batch, length) for length in lengths for batch in batch_sizes]
    measured = [
        _measure_speed(lm, service, batch, length, track)
        for batch, length in track(grid, "cost", [float(batch * length) for batch, length in grid])
    ]
    generations = tuple(written for _, written in measured if written is not None)
    return Cost(
        parameters=lm.size()[0],
        bytes=stored_bytes(lm) if folder is None else file_bytes(folder),
        memory_bytes=weight_bytes(lm),
        dtype=str(lm.model.dtype).removeprefix("torch."),
        parts=bytes_by_part(lm),
        speeds=tuple(speed for speed, _ in measured),
        generations=generations,
        missing=(NO_CACHE,) if generates_text(lm) and service.runtime == EAGER and not generations else (),
        runtime=service.describe(),
        machine={**machine(lm.device), **_count_kernels(lm)},
    )


def _count_kernels(lm: LanguageModel) -> dict[str, dict[str, int]]:
    """The kernels that quantized layers called, by family (`int8`, `int4`), with the number of layers of each."""
    used: dict[str, Counter[str]] = {}
    for layer in lm.model.modules():
        if isinstance(layer, PackedCodes) and layer.kernel_family is not None and layer.kernel_names:
            called = (f"{rows} rows: {kernel}" for rows, kernel in layer.kernel_names.items())
            used.setdefault(layer.kernel_family.label, Counter()).update(called)
    return {label: dict(sorted(counts.items())) for label, counts in used.items()}


def stored_bytes(lm: LanguageModel) -> int:
    """Bytes of the safetensors files that saving the model in its dtype would write.

    Returns:
        The bytes of all tensors, shared ones once, and of their index.
    """
    sizes: dict[tuple[int, int], int] = {}
    index: dict[str, Any] = {}
    for name, tensor in stored_tensors(to_dtype(lm.model, lm.dtype)).items():
        # Empty tensors have no address to be told apart by, and no bytes.
        key = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() == 0 or key not in sizes:
            start = sum(sizes.values())
            sizes[key] = tensor.nbytes
            index[name] = {
                "dtype": "F32",
                "shape": list(tensor.shape),
                "data_offsets": [start, start + sizes[key]],
            }
    beside = 0 if lm.pipeline is None else pipeline_bytes(lm.pipeline)
    return sum(sizes.values()) + len(json.dumps(index, separators=(",", ":"))) + beside


def _measure_speed(
    lm: LanguageModel, service: Service, batch: int, length: int, track: Track
) -> tuple[Speed, Generation | None]:
    """Count the operations of `lm` in torch, and time the model that `service` runs."""
    inputs = random_batch(lm, batch, length)
    timed = latency(service.lm, batch, length, track=track)
    peak = peak_bytes(lm, inputs) if service.runtime == EAGER else None
    written = measure_generation(lm, batch, length, track=track) if service.runtime == EAGER else None
    return Speed(timed, count_macs(lm, inputs), peak, _measure_joules(service.lm, inputs)), written


def _measure_joules(lm: LanguageModel, inputs: Batch) -> float | None:
    meter = find_meter(lm.device)
    if meter is None:
        return None
    with evaluating(lm), torch.inference_mode():
        return measure_joules(lambda: forward(lm, inputs), lm.device, meter)
