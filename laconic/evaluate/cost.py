"""What a model costs: parameters, bytes on disk and in memory, multiply-accumulates, latency, peak memory."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from laconic.calibrate.batching import positions
from laconic.calibrate.passes import evaluating, forward, machine, random_batch
from laconic.evaluate.conditions import BATCHES, LENGTHS
from laconic.evaluate.energy import joules_of, meter_of
from laconic.evaluate.generation import Generation, generation, writes
from laconic.evaluate.macs import macs
from laconic.evaluate.memory import peak_bytes, weight_bytes
from laconic.evaluate.parts import bytes_by_part
from laconic.evaluate.speed import Latency, latency
from laconic.formats import PackedCodes
from laconic.model import Batch, LanguageModel
from laconic.progress import Track, silent
from laconic.runtime import EAGER, Service, serve
from laconic.store import file_bytes
from laconic.store.folder import in_dtype
from laconic.store.packed import stored_tensors
from laconic.store.pipeline import pipeline_bytes

NO_CACHE = "The speed of writing was not measured: the model keeps no keys and values of the tokens before."


@dataclass(frozen=True)
class Speed:
    """One batch × length: how long it takes, its multiply-accumulates, and the bytes of tensors alive at its peak.

    peak_bytes: of torch alone, None in another runtime, which tells of no tensors.
    joules:     of one pass; None where the machine does not count them.
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
    """parameters: a matrix that is shared counts once, a zero that was chosen not at all.
    bytes:        on disk: of the safetensors files, or what they would be.
    memory_bytes: of the weights as they are in memory here, which is in `dtype`.
    parts:        bytes in the stored dtype of word embeddings, attention, feed-forwards, head and everything else.
    speeds:       by batch × length.
    generations:  the same of writing, for models that write; in torch as it is alone.
    missing:      sentences about what could not be measured.
    runtime:      what ran the model, and the bytes of what was exported for it.
    machine:      what the timings depend on; `int8` and `int4` count layers by the kernel that ran, for so many rows.
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
    """Measure `lm`, saved in `folder` or not yet; lengths beyond what it can read are cut to that.

    `service`: what runs it, torch as it is where that is not said.
    """
    service = serve(lm) if service is None else service
    longest = positions(lm)
    # Two that are cut to the same are one.
    lengths = tuple(dict.fromkeys(length if longest is None else min(length, longest) for length in lengths))
    grid = [(batch, length) for length in lengths for batch in batch_sizes]
    measured = [
        _measured(lm, service, batch, length, track)
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
        missing=(NO_CACHE,) if writes(lm) and service.runtime == EAGER and not generations else (),
        runtime=service.about(),
        machine={**machine(lm.device), **_kernels(lm)},
    )


def _kernels(lm: LanguageModel) -> dict[str, dict[str, int]]:
    """By the label of its family, each kernel that was called, with the number of its layers."""
    used: dict[str, Counter[str]] = {}
    for layer in lm.model.modules():
        if isinstance(layer, PackedCodes) and layer.kernel_family is not None and layer.kernel_names:
            called = (f"{rows} rows: {kernel}" for rows, kernel in layer.kernel_names.items())
            used.setdefault(layer.kernel_family.label, Counter()).update(called)
    return {label: dict(sorted(counts.items())) for label, counts in used.items()}


def stored_bytes(lm: LanguageModel) -> int:
    """Bytes of the safetensors files that saving `lm` in its dtype would write: tensors, each once, and their index."""
    sizes: dict[tuple[int, int], int] = {}
    index: dict[str, Any] = {}
    for name, tensor in stored_tensors(in_dtype(lm.model, lm.dtype)).items():
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


def _measured(
    lm: LanguageModel, service: Service, batch: int, length: int, track: Track
) -> tuple[Speed, Generation | None]:
    """`lm` itself says how many operations it has, and what `service` runs how long they take."""
    inputs = random_batch(lm, batch, length)
    timed = latency(service.lm, batch, length, track=track)
    peak = peak_bytes(lm, inputs) if service.runtime == EAGER else None
    written = generation(lm, batch, length, track=track) if service.runtime == EAGER else None
    return Speed(timed, macs(lm, inputs), peak, _joules(service.lm, inputs)), written


def _joules(lm: LanguageModel, inputs: Batch) -> float | None:
    meter = meter_of(lm.device)
    if meter is None:
        return None
    with evaluating(lm), torch.inference_mode():
        return joules_of(lambda: forward(lm, inputs), lm.device, meter)
