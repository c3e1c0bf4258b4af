"""Joules of a forward pass, where the machine counts them: RAPL of the processor on Linux, NVML of a GPU.

Both count all that the processor or the GPU does meanwhile, so they mean something on a quiet machine alone. Where
there is no counter, or only an administrator may read it, there is no figure.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from laconic.calibrate.passes import now

POWERCAP = Path("/sys/class/powercap")
SECONDS, FEWEST_PASSES = 1.0, 3
"""Counters move about once a millisecond: for how long, and how often at least, the pass is repeated."""


class Meter(ABC):
    """A counter of energy."""

    @abstractmethod
    def joules(self) -> float:
        """Since some moment in the past."""


class Rapl(Meter):
    """Of every package of the processor; counters begin anew at `max_energy_range_uj`."""

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
    """Of one NVIDIA GPU."""

    def __init__(self, nvml: Any, device: torch.device) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def joules(self) -> float:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3


def meter_of(device: torch.device, powercap: Path = POWERCAP) -> Meter | None:
    """What counts the energy of `device`; None where nothing does."""
    if device.type == "cuda":
        return _nvml_of(device)
    packages = tuple(zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1)
    try:
        return Rapl(packages) if packages else None
    except OSError:
        # Linux lets only an administrator read them since CVE-2020-8694.
        return None


def _nvml_of(device: torch.device) -> Meter | None:
    if find_spec("pynvml") is None:
        return None
    nvml = import_module("pynvml")
    try:
        meter = Nvml(nvml, device)
        meter.joules()
    except nvml.NVMLError:
        # GPUs before Volta count nothing, and in a container the library of the driver may be missing.
        return None
    return meter


def joules_of(work: Callable[[], object], device: torch.device, meter: Meter) -> float:
    """Of doing `work` once, averaged over as many times as a second has."""
    start, before, passes = now(device), meter.joules(), 0
    while passes < FEWEST_PASSES or now(device) - start < SECONDS:
        work()
        passes += 1
    now(device)
    return (meter.joules() - before) / passes
