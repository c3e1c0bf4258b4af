"""Libraries that runtimes need beside the core: asked for before any model is loaded, imported where they are used."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from laconic.errors import UserError, install, unknown

EAGER = "eager"
"""Plain torch."""
COMPILE = "compile"
"""`torch.compile`."""
ONNX = "onnx"
"""ONNX Runtime."""
OPENVINO = "openvino"
"""OpenVINO."""
RUNTIMES = (EAGER, COMPILE, ONNX, OPENVINO)
"""By the names that `--runtime` takes."""
NEEDED: dict[str, tuple[str, ...]] = {
    EAGER: (),
    COMPILE: (),
    ONNX: ("onnx", "onnxscript", "onnxruntime"),
    # It reads what torch writes for ONNX.
    OPENVINO: ("onnx", "onnxscript", "openvino"),
}


def check_runtime(name: str, device: str = "cpu") -> None:
    """Raise UserError unless there is a runtime `name`, its libraries are installed, and it computes on `device`."""
    if name not in RUNTIMES:
        raise unknown("runtime", name, RUNTIMES)
    if missing := [library for library in NEEDED[name] if find_spec(library) is None]:
        raise UserError(f"The runtime '{name}' needs {' and '.join(missing)}, not installed here: {install(name)}.")
    if name in (ONNX, OPENVINO) and device != "cpu":
        raise UserError(f"The runtime '{name}' computes on the CPU only; leave out --device '{device}'.")


def library(name: str) -> Any:
    """A library of an extra, which `check_runtime` has found."""
    return import_module(name)
