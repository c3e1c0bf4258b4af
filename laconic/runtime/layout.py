"""How constant matrices lie in an OpenVINO model: (out, in), read by products with `transpose_b`.

OpenVINO's own conversion from torch lays them out so, and its tools expect it: NNCF compresses a matrix in groups along
its inputs, and kernels look for codes in that order. What came by ONNX has (in, out), or a transposition on the way.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from laconic.runtime.extras import library


def lay_out(model: Any) -> None:
    """Give every product of the OpenVINO `model` with a constant matrix that matrix as (out, in), in place."""
    opset: Any = library("openvino.opset13")
    # A matrix that several products read stays one.
    turned: dict[str, Any] = {}
    for product in list(_products(model)):
        weight = product.input_value(1)
        name = f"{weight.get_node().get_name()}:{weight.get_index()}"
        if name not in turned:
            turned[name] = _turned(weight, opset)
        replaced = opset.matmul(
            product.input_value(0), turned[name], bool(product.get_attributes()["transpose_a"]), True
        )
        replaced.set_friendly_name(product.get_friendly_name())
        replaced.output(0).set_names(product.output(0).get_names())
        product.output(0).replace(replaced.output(0))
    model.validate_nodes_and_infer_types()


def _products(model: Any) -> Iterator[Any]:
    """Those whose second matrix is constant, two-dimensional and (in, out)."""
    constant: set[str] = set()
    for node in model.get_ordered_ops():
        sources = [value.get_node() for value in node.input_values()]
        if node.get_type_name() == "Constant" or (sources and all(one.get_name() in constant for one in sources)):
            constant.add(node.get_name())
        elif node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_b"]:
            weight = node.input_value(1)
            if sources[1].get_name() in constant and len(weight.get_partial_shape()) == 2:
                yield node


def _turned(value: Any, opset: Any) -> Any:
    """The matrix with its axes exchanged: of a constant its numbers, of all else by a transposition less or more."""
    node = value.get_node()
    match node.get_type_name():
        case "Constant" if node.get_element_type().bitwidth >= 8:
            return _constant(node)
        case "Transpose":
            return node.input_value(0)
        case "Convert" if node.input_value(0).get_node().get_type_name() == "Constant":
            inner = _turned(node.input_value(0), opset)
            return opset.convert(inner, value.get_element_type().get_type_name()).output(0)
    return opset.transpose(value, np.array([1, 0])).output(0)


def _constant(node: Any) -> Any:
    openvino = library("openvino")
    # Memory of its own: that of an array would be lent, and is gone with it. (bfloat16 is seen as float16, bit by bit.)
    tensor = openvino.Tensor(node.get_element_type(), openvino.Shape(list(node.data.T.shape)))
    tensor.data[:] = node.data.T
    constant = openvino.op.Constant(tensor)
    constant.set_friendly_name(node.get_friendly_name())
    return constant.output(0)
