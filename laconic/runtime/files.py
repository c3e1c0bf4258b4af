"""The files of an exported model: `model.onnx`, or `openvino_model.xml` with its weights beside it."""

from pathlib import Path

from laconic.errors import UserError, reason_of
from laconic.formats import DynamicInt8
from laconic.model import LanguageModel
from laconic.runtime.extras import ONNX, OPENVINO, library
from laconic.runtime.graph import Graph
from laconic.runtime.layout import lay_out
from laconic.runtime.programs import EXACT

NAMES = {ONNX: "model.onnx", OPENVINO: "openvino_model.xml"}
"""As others call them too, so that their tools find them."""
PASSING = "passing.onnx"


def write(lm: LanguageModel, graph: Graph, runtime: str, folder: Path) -> Path:
    """Write `graph`, which is of `lm`, to `folder` for `runtime`; the file that it loads.

    Raises:
        UserError: OpenVINO cannot read the graph.
    """
    file = folder / NAMES[runtime]
    if runtime == ONNX:
        graph.save(file)
        return file
    passing = folder / PASSING
    graph.save(passing)
    openvino = library("openvino")
    try:
        # Not `convert_model`, which would cast every weight to float32 for good.
        model = openvino.Core().read_model(passing)
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot read the exported model: {reason_of(error)}.") from error
    lay_out(model)
    if not any(isinstance(module, DynamicInt8) for module in lm.model.modules()):
        # Where weights are codes it would round inputs to 8 bits, which only one of our formats asks for.
        for name, value in EXACT.items():
            model.set_rt_info(value, ["runtime_options", name])
    openvino.save_model(model, file, compress_to_fp16=False)
    for left in folder.glob(f"{PASSING}*"):
        left.unlink()
    return file


def weights_bytes(folder: Path) -> int:
    """Bytes of the exported model in `folder`: graph and weights."""
    kinds = (".onnx", ".onnx.data", ".xml", ".bin")
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(kinds))
