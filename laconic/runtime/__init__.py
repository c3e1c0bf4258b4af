"""Where a model is served: torch as it is or compiled, ONNX Runtime, OpenVINO; export to the latter two."""

from laconic.runtime.extras import COMPILE, EAGER, ONNX, OPENVINO, RUNTIMES, check_runtime
from laconic.runtime.serve import Exported, Ready, Service, serve

__all__ = [
    "COMPILE",
    "EAGER",
    "ONNX",
    "OPENVINO",
    "RUNTIMES",
    "Exported",
    "Ready",
    "Service",
    "check_runtime",
    "serve",
]
