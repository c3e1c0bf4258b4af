"""Export a model as an ONNX graph with dynamic batch size and length, and write it for ONNX Runtime or OpenVINO.

Weights take as many bytes as in laconic. Attention is exported as matrix products and a softmax (the `eager`
implementation of transformers), which runtimes recognise and fuse. The fused attention of torch would add operators for
rows in which all keys are masked.

In an OpenVINO model, the constant matrix of each matrix product is stored as (out, in), with `transpose_b`, as in
OpenVINO's own conversion from torch. Its tools expect this layout: NNCF compresses a matrix in groups along its inputs,
and kernels expect integer weights in that order. In a model converted from ONNX, such a matrix is (in, out) or is
followed by a `Transpose` operator.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from laconic.errors import UserError, reason_of
from laconic.formats import DynamicInt8
from laconic.model import LanguageModel, ModelTask
from laconic.runtime.engines import EXACT, ONNX, OPENVINO
from laconic.runtime.portable import ExportedLayers, to_portable
from laconic.runtime.portable_layers import Portable
from laconic.runtime.signature import TARGETS, Signature
from laconic.runtime.tracing import quiet, trace

ROWS, CHOICES = ("batch", "length"), ("batch", "choices", "length")
"""Names of the axes of inputs, also for multiple choice."""
AXES = {TARGETS: ("batch", "target_length")}
"""Names of the axes of other inputs."""
SMALL = 2**10
"""Tensors with fewer elements stay in float32, as a cast operator would take more bytes than it saves."""
LARGEST_FILE = 2**30
"""Weights with more bytes are stored in a separate file. The limit of a protobuf file is twice as large."""
HALVES = ("float16", "bfloat16")
FILE_NAMES = {ONNX: "model.onnx", OPENVINO: "openvino_model.xml"}
"""The file names that other tools expect."""
INTERMEDIATE = "intermediate.onnx"


@dataclass(frozen=True)
class Graph:
    """An exported graph.

    Args:
        program: the ONNX program of torch, which contains an `onnx_ir` model.
        signature: its inputs and outputs.
        layers: how quantized layers were exported, by label.
    """

    program: Any
    signature: Signature
    layers: dict[str, ExportedLayers]

    def save(self, file: Path) -> None:
        """Write the graph as an ONNX file. Weights of more than `LARGEST_FILE` bytes go to a second file."""
        weights = sum(value.const_value.nbytes for value in self.program.model.graph.initializers.values())
        with quiet():
            self.program.save(file, external_data=weights > LARGEST_FILE)


def build_graph(lm: LanguageModel, runtime: str, hidden: bool = False) -> Graph:
    """Export a model as an ONNX graph.

    Args:
        lm: the model; it is not changed.
        runtime: `ONNX` or `OPENVINO`, which have different operators for quantized layers.
        hidden: whether the last hidden states are an additional output.

    Raises:
        UserError: torch cannot trace this architecture, or the model does not run.
    """
    signature = Signature.of(lm, hidden)
    twin, layers = to_portable(lm, runtime)
    twin.model.set_attn_implementation("eager")
    program = trace(lm, twin, signature)
    _remove_metadata(program.model)
    _round_to_bfloat16(program.model.graph)
    _name_axes(program.model.graph, signature)
    portable = ((name, module) for name, module in twin.model.named_modules() if isinstance(module, Portable))
    four_bit = {f"model.{name}.{tensor}" for name, module in portable for tensor in module.four_bit_names}
    _shrink(program.model.graph, four_bit, str(lm.dtype).removeprefix("torch."))
    return Graph(program, signature, layers)


def _remove_metadata(model: Any) -> None:
    """Remove the stack trace of each operator: it contains paths of this machine, and takes many bytes."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _round_to_bfloat16(graph: Any) -> None:
    """Compute operators of bfloat16 numbers in float32 and round the result, as torch does.

    ONNX Runtime has hardly any of them on the CPU. Falcon computes the slopes of its positions in bfloat16.
    """
    ir: Any = import_module("onnx_ir")
    half, single = ir.DataType.BFLOAT16, ir.DataType.FLOAT
    for node in list(graph):
        read = [(index, value) for index, value in enumerate(node.inputs) if value is not None and value.dtype is half]
        if node.op_type == "Cast" or not read:
            continue
        for index, value in read:
            cast = ir.node("Cast", [value], {"to": single})
            cast.outputs[0].dtype = single
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
        for output in (output for output in node.outputs if output.dtype is half):
            uses = list(output.uses())
            rounded = ir.node("Cast", [output], {"to": half})
            output.dtype, rounded.outputs[0].dtype, rounded.outputs[0].shape = single, half, output.shape
            graph.insert_after(node, rounded)
            for reader, index in uses:
                reader.replace_input_with(index, rounded.outputs[0])


def _name_axes(graph: Any, signature: Signature) -> None:
    """Name the dynamic axes "batch", "choices" and "length"; the tracer numbers them."""
    ir: Any = import_module("onnx_ir")
    inputs = {value.name: value for value in graph.inputs}
    has_choices = len(inputs["input_ids"].shape) == len(CHOICES)
    for name, value in inputs.items():
        value.shape = ir.Shape(AXES.get(name, CHOICES if has_choices else ROWS))
    # The hidden states of all choices of all rows are in one axis.
    rows = ("sequences", "length") if has_choices else AXES[TARGETS] if TARGETS in signature.inputs else ROWS
    for value in graph.outputs:
        if value.shape is not None and len(value.shape) == 3:
            value.shape = ir.Shape([*rows, value.shape[2]])
        elif value.shape is not None and len(value.shape) == 2:
            by_token = value.name in ModelTask.QUESTION_ANSWERING.output_names
            last = "length" if by_token else "choices" if has_choices else value.shape[1]
            value.shape = ir.Shape(["batch", last])


def _shrink(graph: Any, four_bit: set[str], dtype: str) -> None:
    """Store two 4-bit integers per byte, and store weights in the 16-bit dtype of the model if that is exact.

    Args:
        graph: the graph, changed in place.
        four_bit: names of tensors of 4-bit integers.
        dtype: the dtype in which laconic stores the model. The graph casts weights back to float32.
    """
    ir: Any = import_module("onnx_ir")
    ml_dtypes: Any = import_module("ml_dtypes")
    for name, value in list(graph.initializers.items()):
        if name in four_bit:
            value.const_value = ir.tensor(value.const_value.numpy().astype(ml_dtypes.uint4), name=name)
            value.dtype = ir.DataType.UINT4
        elif dtype in HALVES and value.dtype is ir.DataType.FLOAT and value.const_value.size >= SMALL:
            weight = value.const_value.numpy()
            with np.errstate(over="ignore"):
                half = weight.astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
            if np.array_equal(half.astype(np.float32), weight):
                _store_half(graph, value, ir.tensor(half, name=f"{name}.{dtype}"))


def _store_half(graph: Any, value: Any, half: Any) -> None:
    """Replace an initializer by `half` and a cast to float32."""
    ir: Any = import_module("onnx_ir")
    stored = ir.Value(name=half.name, shape=ir.Shape(half.shape), type=ir.TensorType(half.dtype), const_value=half)
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
    back = cast.outputs[0]
    back.name, back.shape, back.type = f"{value.name}.cast", value.shape, ir.TensorType(ir.DataType.FLOAT)
    ir.convenience.replace_all_uses_with(value, back)
    del graph.initializers[value.name]
    graph.initializers[stored.name] = stored
    graph.insert_before(graph[0], cast)


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
    openvino: Any = import_module("openvino")
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
    for leftover in folder.glob(f"{INTERMEDIATE}*"):
        leftover.unlink()
    return file


def exported_bytes(folder: Path) -> int:
    """Bytes of the graph and the weights of the exported model in `folder`."""
    endings = (".onnx", ".onnx.data", ".xml", ".bin")
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(endings))


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
