"""The engines that run a model: torch, ONNX Runtime and OpenVINO; their libraries, and exported models loaded by them.

Libraries are optional. They are checked before any model is loaded, and imported where they are used.
"""

from abc import ABC, abstractmethod
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.errors import UserError, install, reason_of, unknown
from laconic.model import Batch

EAGER = "eager"
"""Plain torch."""
COMPILE = "compile"
"""`torch.compile`."""
ONNX = "onnx"
"""ONNX Runtime."""
OPENVINO = "openvino"
"""OpenVINO."""
RUNTIMES = (EAGER, COMPILE, ONNX, OPENVINO)
"""The values of `--runtime`."""
LIBRARIES: dict[str, tuple[str, ...]] = {
    EAGER: (),
    COMPILE: (),
    ONNX: ("onnx", "onnxscript", "onnxruntime"),
    # OpenVINO reads the ONNX file that torch writes.
    OPENVINO: ("onnx", "onnxscript", "openvino"),
}
EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Tells OpenVINO not to round inputs where weights are codes."""


def check_runtime(name: str, device: str = "cpu") -> None:
    """Check that a runtime can be used here.

    Args:
        name: one of `RUNTIMES`.
        device: the type of the device that the model is on.

    Raises:
        UserError: there is no such runtime, a library is missing, or it does not run on this device.

    Example:
        >>> check_runtime("eager")
        >>> check_runtime("onyx")
        Traceback (most recent call last):
        laconic.errors.UserError: There is no runtime 'onyx': did you mean 'onnx'? known are compile, eager, ...
    """
    if name not in RUNTIMES:
        raise unknown("runtime", name, RUNTIMES)
    if missing := [library for library in LIBRARIES[name] if find_spec(library) is None]:
        raise UserError(f"The runtime '{name}' needs {' and '.join(missing)}, not installed here: {install(name)}.")
    if name in (ONNX, OPENVINO) and device != "cpu":
        raise UserError(f"The runtime '{name}' computes on the CPU only; leave out --device '{device}'.")


def library(name: str) -> Any:
    """The module `name` of an optional library, which `check_runtime` has found."""
    return import_module(name)


class Program(ABC):
    """An exported model that is loaded; it runs on as many threads as torch has."""

    version: str
    """Name and version of the library."""

    @abstractmethod
    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        """All outputs of the model by name, on the CPU in float32; an output may have several names."""


class OnnxProgram(Program):
    """An ONNX file in ONNX Runtime, with all optimisations of its graph.

    Args:
        file: the ONNX file.
    """

    def __init__(self, file: Path) -> None:
        onnxruntime = library("onnxruntime")
        self.version = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        # ONNX Runtime's errors have no base class of their own.
        state = onnxruntime.capi.onnxruntime_pybind11_state
        errors = state.InvalidGraph, state.InvalidProtobuf, state.Fail, state.NotImplemented, state.RuntimeException
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except errors as error:
            raise UserError(f"ONNX Runtime cannot load '{file.name}': {reason_of(error)}.") from error
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
        return dict(zip(self._outputs, map(torch.from_numpy, self._session.run(None, arrays)), strict=True))


class OpenVinoProgram(Program):
    """A file in OpenVINO, computed in float32; without that setting it uses bfloat16 on processors that have it.

    Args:
        file: the xml file.
        exact: never round inputs, also where weights are codes.
    """

    def __init__(self, file: Path, *, exact: bool = False) -> None:
        openvino = library("openvino")
        self.version = f"openvino {openvino.__version__}"
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            **(EXACT if exact else {}),
        }
        try:
            self._compiled = openvino.Core().compile_model(file, "CPU", settings)
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot load '{file.name}': {reason_of(error)}.") from error
        # An output has several names where its operator was folded into the one before, such as a bias of zeros.
        self._names: list[set[str]] = [output.get_names() for output in self._compiled.outputs]

    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        outputs = self._compiled({name: tensor.numpy() for name, tensor in feeds.items()})
        # Outputs are in OpenVINO's own memory, which the next call overwrites.
        values = [torch.from_numpy(np.array(value)) for value in outputs.values()]
        return {name: value for names, value in zip(self._names, values, strict=True) for name in names}


def load_program(runtime: str, file: Path, *, exact: bool = False) -> Program:
    """Load an exported model.

    Args:
        runtime: `ONNX` or `OPENVINO`.
        file: the file that the runtime reads.
        exact: compute with the numbers of the file, without rounding inputs, even where that is slower.

    Raises:
        UserError: the runtime cannot read the file.
    """
    return OnnxProgram(file) if runtime == ONNX else OpenVinoProgram(file, exact=exact)
