"""The files of an exported model: `model.onnx`, or `openvino_model.xml` with its weights beside it.

In an OpenVINO model, the constant matrix of each matrix product is stored as (out, in), with `transpose_b`. OpenVINO's
own conversion from torch uses this layout, and its tools expect it: NNCF compresses a matrix in groups along its
inputs, and kernels expect integer weights in that order. A model that was converted from ONNX has (in, out) matrices
or `Transpose` operators instead.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from laconic.errors import UserError, reason_of
from laconic.formats import DynamicInt8
from laconic.model import LanguageModel
from laconic.runtime.engines import EXACT, ONNX, OPENVINO, library
from laconic.runtime.graph import Graph

FILE_NAMES = {ONNX: "model.onnx", OPENVINO: "openvino_model.xml"}
"""The file names that other tools expect."""
INTERMEDIATE = "intermediate.onnx"


def write_model(lm: LanguageModel, graph: Graph, runtime: str, folder: Path) -> Path:
    """Write an exported model.

    Args:
        lm: the model from which the graph was traced.
        graph: the result of `build_graph` for the same runtime.
        runtime: `ONNX` or `OPENVINO`.
        folder: an existing folder.

    Returns:
        The file that the runtime loads.

    Raises:
        UserError: OpenVINO cannot read the graph.
    """
    file = folder / FILE_NAMES[runtime]
    if runtime == ONNX:
        graph.save(file)
        return file
    intermediate = folder / INTERMEDIATE
    graph.save(intermediate)
    openvino = library("openvino")
    try:
        # `convert_model` would cast all weights to float32.
        model = openvino.Core().read_model(intermediate)
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot read the exported model: {reason_of(error)}.") from error
    transpose_weights(model)
    if not any(isinstance(module, DynamicInt8) for module in lm.model.modules()):
        # OpenVINO would round the inputs of layers with integer weights to 8 bits; only one format of laconic does.
        for name, value in EXACT.items():
            model.set_rt_info(value, ["runtime_options", name])
    openvino.save_model(model, file, compress_to_fp16=False)
    for left in folder.glob(f"{INTERMEDIATE}*"):
        left.unlink()
    return file


def exported_bytes(folder: Path) -> int:
    """Bytes of the graph and the weights of the exported model in `folder`."""
    endings = (".onnx", ".onnx.data", ".xml", ".bin")
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(endings))


def transpose_weights(model: Any) -> None:
    """Store the constant matrix of every product of the OpenVINO `model` as (out, in), in place."""
    opset: Any = library("openvino.opset13")
    # A matrix that several products read is transposed once.
    transposed: dict[str, Any] = {}
    for product in list(_products(model)):
        weight = product.input_value(1)
        name = f"{weight.get_node().get_name()}:{weight.get_index()}"
        if name not in transposed:
            transposed[name] = _transpose(weight, opset)
        transpose_input = bool(product.get_attributes()["transpose_a"])
        replacement = opset.matmul(product.input_value(0), transposed[name], transpose_input, True)
        replacement.set_friendly_name(product.get_friendly_name())
        replacement.output(0).set_names(product.output(0).get_names())
        product.output(0).replace(replacement.output(0))
    model.validate_nodes_and_infer_types()


def _products(model: Any) -> Iterator[Any]:
    """All matrix products whose second operand is a constant two-dimensional (in, out) matrix."""
    constant: set[str] = set()
    for node in model.get_ordered_ops():
        sources = [value.get_node() for value in node.input_values()]
        if node.get_type_name() == "Constant" or (sources and all(each.get_name() in constant for each in sources)):
            constant.add(node.get_name())
        elif node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_b"]:
            weight = node.input_value(1)
            if sources[1].get_name() in constant and len(weight.get_partial_shape()) == 2:
                yield node


def _transpose(value: Any, opset: Any) -> Any:
    """The transposed matrix: transpose the constant itself, or remove or add a `Transpose` operator."""
    node = value.get_node()
    match node.get_type_name():
        case "Constant" if node.get_element_type().bitwidth >= 8:
            return _transpose_constant(node)
        case "Transpose":
            return node.input_value(0)
        case "Convert" if node.input_value(0).get_node().get_type_name() == "Constant":
            inner = _transpose(node.input_value(0), opset)
            return opset.convert(inner, value.get_element_type().get_type_name()).output(0)
    return opset.transpose(value, np.array([1, 0])).output(0)


def _transpose_constant(node: Any) -> Any:
    openvino = library("openvino")
    # The constant must own its memory, as a NumPy array would be freed. bfloat16 is copied bitwise as float16.
    tensor = openvino.Tensor(node.get_element_type(), openvino.Shape(list(node.data.T.shape)))
    tensor.data[:] = node.data.T
    constant = openvino.op.Constant(tensor)
    constant.set_friendly_name(node.get_friendly_name())
    return constant.output(0)
