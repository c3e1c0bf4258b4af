"""An exported model that is run: named tensors in, named tensors out, on as many threads as torch has."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.errors import UserError, reason_of
from laconic.model import Batch
from laconic.runtime.extras import ONNX, library

EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Of OpenVINO: multiply by codes as they are, and never round inputs."""


class Program(ABC):
    """A model in another runtime."""

    version: str
    """Of the library."""

    @abstractmethod
    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        """What the model gives for `feeds`, on the CPU in float32, by each name that it has."""


class OnnxProgram(Program):
    """Run by ONNX Runtime, its graph optimised as far as it goes."""

    def __init__(self, file: Path) -> None:
        onnxruntime = library("onnxruntime")
        self.version = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        self._outputs: list[str]
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except _refusals(onnxruntime) as error:
            raise UserError(f"ONNX Runtime cannot load '{file.name}': {reason_of(error)}.") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        given = {name: tensor.numpy() for name, tensor in feeds.items()}
        return dict(zip(self._outputs, map(torch.from_numpy, self._session.run(None, given)), strict=True))


class OpenVinoProgram(Program):
    """Run by OpenVINO in float32, which it would leave for bfloat16 where the processor has that."""

    def __init__(self, file: Path, *, exact: bool = False) -> None:
        openvino = library("openvino")
        self.version = f"openvino {openvino.__version__}"
        asked = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        asked |= {"PERFORMANCE_HINT": "LATENCY"}
        try:
            self._compiled = openvino.Core().compile_model(file, "CPU", {**asked, **(EXACT if exact else {})})
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot load '{file.name}': {reason_of(error)}.") from error
        # An output has several names where what made it was folded into what came before, such as a bias of zeros.
        self._names: list[set[str]] = [output.get_names() for output in self._compiled.outputs]

    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        found = self._compiled({name: tensor.numpy() for name, tensor in feeds.items()})
        # What it gives lies in its own memory, which the next call writes to.
        values = [torch.from_numpy(np.array(value)) for value in found.values()]
        return {name: value for names, value in zip(self._names, values, strict=True) for name in names}


def program(runtime: str, file: Path, *, exact: bool = False) -> Program:
    """The exported model in `file`, ready to run; `exact` asks of it what the file's numbers come to, however slowly.

    Raises:
        UserError: the runtime cannot read it.
    """
    return OnnxProgram(file) if runtime == ONNX else OpenVinoProgram(file, exact=exact)


def _refusals(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a file that it cannot run; its errors have no common class of their own."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    return state.InvalidGraph, state.InvalidProtobuf, state.Fail, state.NotImplemented, state.RuntimeException
