"""Run a model in torch (eager or compiled), ONNX Runtime or OpenVINO, and export it to the latter two.

Internal: it may change with any version.
"""

from laconic.runtime.engines import COMPILE, EAGER, ONNX, OPENVINO, RUNTIMES, check_runtime
from laconic.runtime.serve import ExportedForward, LoadedExport, Service, is_served, serve

__all__ = [
    "COMPILE",
    "EAGER",
    "ONNX",
    "OPENVINO",
    "RUNTIMES",
    "ExportedForward",
    "LoadedExport",
    "Service",
    "check_runtime",
    "is_served",
    "serve",
]
