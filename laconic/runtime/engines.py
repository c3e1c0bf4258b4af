"""The runtimes torch, ONNX Runtime and OpenVINO: check that their libraries are installed, and load exported models.

The libraries are optional. They are checked before any model is loaded, and imported at first use.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
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
SIZE_ERROR = re.compile(r"reshape|broadcast|shape mismatch", re.IGNORECASE)
"""Words in the message of a runtime for tensors whose sizes do not fit together."""
EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""The OpenVINO setting that disables dynamic quantization of inputs for layers with integer weights."""
ROUNDED = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
"""The OpenVINO setting for the inputs of dynamic int8 layers: the number of neighbouring inputs with one scale.

Larger groups take less time than OpenVINO's own of 32, but OpenVINO multiplies in floating point where a matrix has
fewer columns than a group.
"""


def check_runtime(name: str, device: str = "cpu") -> None:
    """Check that a runtime is available on this machine.

    Args:
        name: one of `RUNTIMES`.
        device: the type of the device that the model is on.

    Raises:
        UserError: the name is unknown, a library is missing, or the runtime does not support the device.

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


class Program(ABC):
    """An exported model that is loaded in its runtime. It uses as many CPU threads as torch."""

    version: str
    """Name and version of the library."""

    @abstractmethod
    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        """Run the model on a batch of inputs by name.

        Returns:
            All outputs by name, float32 on the CPU. The same output may occur under several names.
        """


class OnnxProgram(Program):
    """An ONNX model in ONNX Runtime, with all graph optimizations.

    Args:
        file: the ONNX file.
    """

    def __init__(self, file: Path) -> None:
        onnxruntime: Any = import_module("onnxruntime")
        self.version = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        # ONNX Runtime's errors have no base class of their own.
        state = onnxruntime.capi.onnxruntime_pybind11_state
        errors = state.InvalidGraph, state.InvalidProtobuf, state.Fail, state.NotImplemented, state.RuntimeException
        self._errors = (*errors, state.InvalidArgument)
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except errors as error:
            raise UserError(f"ONNX Runtime cannot load '{file.name}': {reason_of(error)}.") from error
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]
        self.inputs: dict[str, list[int | str]] = {each.name: each.shape for each in self._session.get_inputs()}
        """The names of the inputs with their sizes; an axis of any size has its name."""

    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        arrays = {name: tensor.contiguous().numpy() for name, tensor in feeds.items()}
        try:
            outputs = self._session.run(None, arrays)
        except self._errors as error:
            raise _cannot_run("ONNX Runtime", feeds, error) from error
        return dict(zip(self._outputs, map(torch.from_numpy, outputs), strict=True))


class OpenVinoProgram(Program):
    """A model in OpenVINO, computed in float32. By default OpenVINO uses bfloat16 on processors that support it.

    Args:
        file: the xml file.
        exact: disable the dynamic quantization of inputs to 8 bits, also for layers with integer weights.
    """

    def __init__(self, file: Path, *, exact: bool = False) -> None:
        openvino: Any = import_module("openvino")
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
        # An output has several names if its operator, such as adding a bias of zeros, was removed by folding.
        self._names: list[set[str]] = [output.get_names() for output in self._compiled.outputs]
        self.inputs: tuple[str, ...] = tuple(each.get_any_name() for each in self._compiled.inputs)
        """The names of the inputs."""

    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        return self._run(self._compiled, feeds)

    def new_request(self) -> Callable[[Batch], dict[str, Tensor]]:
        """A function that runs the model, with states of its own, which it keeps from one call to the next."""
        return partial(self._run, self._compiled.create_infer_request().infer)

    def _run(self, infer: Callable[[dict[str, Any]], Any], feeds: Batch) -> dict[str, Tensor]:
        try:
            outputs = infer({name: tensor.contiguous().numpy() for name, tensor in feeds.items()})
        except RuntimeError as error:
            raise _cannot_run("OpenVINO", feeds, error) from error
        # Outputs are in OpenVINO's own memory, which the next call overwrites.
        values = [torch.from_numpy(np.array(value)) for value in outputs.values()]
        return {name: value for names, value in zip(self._names, values, strict=True) for name in names}


def _cannot_run(library: str, feeds: Batch, error: Exception) -> UserError:
    shape = " × ".join(map(str, feeds["input_ids"].shape))
    reason = "its graph fixes their number" if SIZE_ERROR.search(str(error)) else reason_of(error)
    return UserError(
        f"{library} cannot run the exported model on {shape} tokens: {reason}; use it in torch, with the runtime eager "
        "or compile."
    )


def load_program(runtime: str, file: Path, *, exact: bool = False) -> Program:
    """Load an exported model.

    Args:
        runtime: `ONNX` or `OPENVINO`.
        file: the file that the runtime reads.
        exact: disable the dynamic quantization of inputs, even if that is slower.

    Raises:
        UserError: the runtime cannot read the file.
    """
    return OnnxProgram(file) if runtime == ONNX else OpenVinoProgram(file, exact=exact)
