"""The layout of matrices in OpenVINO models.

The constant matrix of each matrix product is stored as (out, in), with `transpose_b`, as in OpenVINO's own conversion
from torch. Its tools expect this layout: NNCF compresses a matrix in groups along its inputs, and kernels expect
integer weights in that order. In a model converted from ONNX, such a matrix is (in, out) or is followed by a
`Transpose` operator.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np


def transpose_weights(model: Any) -> None:
    """Store the constant matrix of every product of the OpenVINO `model` as (out, in), in place."""
    opset: Any = import_module("openvino.opset13")
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
    openvino: Any = import_module("openvino")
    # The constant must own its memory, as a NumPy array would be freed. bfloat16 is copied bitwise as float16.
    tensor = openvino.Tensor(node.get_element_type(), openvino.Shape(list(node.data.T.shape)))
    tensor.data[:] = node.data.T
    constant = openvino.op.Constant(tensor)
    constant.set_friendly_name(node.get_friendly_name())
    return constant.output(0)
