"""Export a model as an ONNX graph with dynamic batch size and length, and write it for ONNX Runtime or OpenVINO.

Weights take as many bytes as in laconic. Attention is exported as matrix products and a softmax (the `eager`
implementation of transformers), which runtimes recognise and fuse. The fused attention of torch would add operators for
rows in which all keys are masked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from laconic.errors import UserError, reason_of
from laconic.formats import DynamicInt8
from laconic.model import Batch, LanguageModel, ModelTask
from laconic.runtime.axes import CHOICES, ROWS, TARGET_LENGTH, axis_names
from laconic.runtime.cache_layout import DIMS
from laconic.runtime.engines import EXACT, ONNX, OPENVINO, ROUNDED
from laconic.runtime.openvino_layout import transpose_weights
from laconic.runtime.portable import ExportedLayers, to_portable
from laconic.runtime.portable_layers import Portable
from laconic.runtime.signature import TARGETS, Signature, TracedModel, sentence_pipeline
from laconic.runtime.stateful import make_stateful
from laconic.runtime.tracing import check_traceable, quiet, trace

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


def build_graph(lm: LanguageModel, runtime: str, hidden: bool = False, cached: bool = False) -> Graph:
    """Export a model as an ONNX graph.

    Args:
        lm: the model; it is not changed.
        runtime: `ONNX` or `OPENVINO`, which have different operators for quantized layers.
        hidden: whether the last hidden states are an additional output.
        cached: whether a causal model reads and gives its cache.

    Raises:
        UserError: torch cannot trace this architecture, the model does not run, or it has no cache.
    """
    check_traceable(lm)
    signature = Signature.of(lm, hidden, cached)

    def traced(model: nn.Module) -> nn.Module:
        return TracedModel(model, signature, lm.task, sentence_pipeline(lm))

    return trace_graph(lm, runtime, signature, traced, signature.example(lm))


def trace_graph(
    lm: LanguageModel,
    runtime: str,
    signature: Signature,
    traced: Callable[[nn.Module], nn.Module],
    example: Batch,
) -> Graph:
    """Export a model, or a part of it, as an ONNX graph.

    Args:
        lm: the model; it is not changed.
        runtime: `ONNX` or `OPENVINO`.
        signature: the inputs and outputs.
        traced: makes what is traced of a copy of the model, which must be its submodule `model`.
        example: inputs of the sizes to trace with.

    Raises:
        UserError: torch cannot trace this architecture, or the model does not run.
    """
    twin, layers = to_portable(lm, runtime)
    twin.model.set_attn_implementation("eager")
    program = trace(lm, traced(twin.model), example, signature.outputs)
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
    """Name the dynamic axes, such as "batch" and "length"; the tracer numbers them."""
    ir: Any = import_module("onnx_ir")
    inputs = {value.name: value for value in graph.inputs}
    has_choices = len(inputs["input_ids"].shape) == len(CHOICES)
    cached = signature.cache is not None
    for value in inputs.values():
        _name_value(value, cached)
    # The hidden states of all choices of all rows are in one axis.
    targets = ("batch", TARGET_LENGTH) if TARGETS in signature.inputs else ROWS
    rows = ("sequences", "length") if has_choices else targets
    for value in graph.outputs:
        if value.shape is not None and len(value.shape) == DIMS:
            _name_value(value, cached)
        elif value.shape is not None and len(value.shape) == 3:
            value.shape = ir.Shape([*rows, value.shape[2]])
        elif value.shape is not None and len(value.shape) == 2:
            by_token = value.name in ModelTask.QUESTION_ANSWERING.output_names
            last = "length" if by_token else "choices" if has_choices else value.shape[1]
            value.shape = ir.Shape(["batch", last])


def _name_value(value: Any, cached: bool) -> None:
    ir: Any = import_module("onnx_ir")
    names = axis_names(value.name, len(value.shape), cached)
    value.shape = ir.Shape([size if name is None else name for name, size in zip(names, value.shape, strict=True)])


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


def write_model(lm: LanguageModel, graph: Graph, runtime: str, folder: Path, name: str | None = None) -> Path:
    """Write an exported model.

    Args:
        lm: the model from which the graph was traced.
        graph: the result of `build_graph` for the same runtime.
        runtime: `ONNX` or `OPENVINO`.
        folder: an existing folder.
        name: the name of the file; None for that of a whole model.

    Returns:
        The file that the runtime loads.

    Raises:
        UserError: OpenVINO cannot read the graph.
    """
    file = folder / (name or FILE_NAMES[runtime])
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
    if graph.signature.cache is not None:
        make_stateful(model)
    # OpenVINO would round the inputs of all layers with integer weights to 8 bits; only one format of laconic does.
    rounds_inputs = any(isinstance(module, DynamicInt8) for module in lm.model.modules())
    for setting, value in (ROUNDED if rounds_inputs else EXACT).items():
        model.set_rt_info(value, ["runtime_options", setting])
    openvino.save_model(model, file, compress_to_fp16=False)
    for leftover in folder.glob(f"{INTERMEDIATE}*"):
        leftover.unlink()
    return file


def exported_bytes(folder: Path) -> int:
    """Bytes of the graphs and the weights of the exported model in `folder`, without tokenizers for OpenVINO."""
    endings = (".onnx", ".onnx.data", ".xml", ".bin")
    graphs = (file for file in folder.iterdir() if file.name.endswith(endings) and "tokenizer" not in file.stem)
    return sum(file.stat().st_size for file in graphs)
