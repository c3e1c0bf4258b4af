"""Measure the seconds and joules of a forward pass: after a warm-up, repeatedly, on a fixed number of threads.

Energy is read from counters of the hardware: RAPL for the CPU on Linux, NVML for an NVIDIA GPU. Both count the energy
of the whole CPU or GPU, so that results are valid only if nothing else runs. If there is no counter, or only an
administrator may read it, no energy is reported.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from laconic.calibrate.passes import evaluating, forward, now, random_batch, seconds_of
from laconic.model import LanguageModel
from laconic.progress import Track, silent

WARM_UP_RUNS = 3
RUNS = 30
MIN_RUNS = 5
MAX_SECONDS = 30.0
"""Seconds after which timing stops, if the model has run at least `MIN_RUNS` times."""


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of repeated measurements.

    Args:
        median: seconds.
        lower_quartile: seconds.
        upper_quartile: seconds.

    Example:
        >>> Quartiles.of([1.0, 2.0, 3.0])
        Quartiles(median=2.0, lower_quartile=1.5, upper_quartile=2.5)
    """

    median: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Quartiles":
        lower, median, upper = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        return cls(median, lower, upper)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass.

    Args:
        batch: the number of rows.
        length: the number of tokens in a row.
        median: seconds.
        lower_quartile: seconds.
        upper_quartile: seconds.
        runs: the number of timed passes.
    """

    batch: int
    length: int
    median: float
    lower_quartile: float
    upper_quartile: float
    runs: int

    @property
    def throughput(self) -> float:
        """Tokens per second."""
        return self.batch * self.length / self.median


def latency(
    lm: LanguageModel,
    batch: int = 8,
    length: int = 128,
    *,
    threads: int | None = None,
    runs: int = RUNS,
    track: Track = silent,
) -> Latency:
    """Time a forward pass on random tokens, after a warm-up.

    Args:
        lm: the model.
        batch: the number of rows.
        length: the number of tokens in a row; at most the maximum of the model.
        threads: the number of CPU threads of torch; None does not change it.
        runs: the largest number of timed passes. After 30 seconds in total timing stops, but not before five passes.
        track: reports progress.
    """
    inputs = random_batch(lm, batch, length)
    seconds: list[float] = []
    rows = f"{batch} × {length} tokens"
    with evaluating(lm), fixed_threads(threads), torch.inference_mode():
        warm_up = track(range(WARM_UP_RUNS), f"Warming up for {rows}")
        first = [seconds_of(lambda: forward(lm, inputs), lm.device) for _ in warm_up]
        # Estimate the number of passes that fit into the time, for the progress bar.
        fitting = math.ceil(MAX_SECONDS / max(min(first), 1e-9))
        for _ in track(range(min(runs, max(MIN_RUNS, fitting))), f"Timing {rows}"):
            seconds.append(seconds_of(lambda: forward(lm, inputs), lm.device))
            if sum(seconds) >= MAX_SECONDS and len(seconds) >= MIN_RUNS:
                break
    found = Quartiles.of(seconds)
    length = inputs["input_ids"].shape[1]
    return Latency(batch, length, found.median, found.lower_quartile, found.upper_quartile, len(seconds))


@contextmanager
def fixed_threads(threads: int | None) -> Iterator[None]:
    """A context in which torch uses a fixed number of threads of the CPU.

    Args:
        threads: the number of threads; None does not change it.

    Example:
        >>> with fixed_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        work: the function. On a GPU, its kernels are waited for.
        device: the device on which it runs.
        meter: the counter of that device.
    """
    start, before, passes = now(device), meter.joules(), 0
    while passes < MIN_PASSES or now(device) - start < METER_SECONDS:
        work()
        passes += 1
    now(device)
    return (meter.joules() - before) / passes
