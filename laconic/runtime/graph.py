"""Export a model as an ONNX graph with dynamic batch size and length. Its weights take as many bytes as in laconic.

Attention is exported as matrix products and a softmax (the `eager` implementation of transformers), which runtimes
recognise and fuse. The fused attention of torch would add operators for rows in which all keys are masked.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from laconic.calibrate.passes import check_runs, evaluating
from laconic.errors import UserError, reason_of
from laconic.model import LanguageModel
from laconic.runtime.engines import library
from laconic.runtime.layers import Portable
from laconic.runtime.portable import ExportedLayers, to_portable
from laconic.runtime.signature import TARGETS, Signature, TracedModel, sentence_pipeline

OPSET = 21
"""The first ONNX opset with integers of 4 bits."""
AXES = {TARGETS: ("batch", "target_length")}
"""Names of the axes of inputs whose axes are not (batch, length)."""
SMALL = 2**10
"""Tensors with fewer elements stay in float32, as a cast operator would take more bytes than it saves."""
LARGEST_FILE = 2**30
"""Weights with more bytes are stored in a separate file. The limit of a protobuf file is twice as large."""
HALVES = ("float16", "bfloat16")


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
        with _quiet():
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
    inputs = signature.example(lm)
    dynamic = torch.export.Dim.DYNAMIC
    with evaluating(twin), torch.inference_mode(False), torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                TracedModel(twin.model, signature, lm.task, sentence_pipeline(lm)),
                tuple(inputs.values()),
                input_names=signature.inputs,
                output_names=signature.outputs,
                dynamic_shapes=(tuple({0: dynamic, 1: dynamic} for _ in inputs),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            # If the model itself cannot run, raise that error instead.
            check_runs(lm)
            raise _trace_error(lm, error) from error
    assert program is not None
    _remove_metadata(program.model)
    _name_axes(program.model.graph, signature)
    portable = ((name, module) for name, module in twin.model.named_modules() if isinstance(module, Portable))
    four_bit = {f"model.{name}.{tensor}" for name, module in portable for tensor in module.four_bit_names}
    _shrink(program.model.graph, four_bit, str(lm.dtype).removeprefix("torch."))
    return Graph(program, signature, layers)


def _trace_error(lm: LanguageModel, error: Exception) -> UserError:
    # The message of the exporter advises to change the code of the model.
    cause = error.__cause__ or error
    return UserError(
        f"The architecture '{lm.model.config.model_type}' cannot be exported: torch cannot trace "
        f"{type(lm.model).__name__} for any length ({reason_of(cause) if isinstance(cause, Exception) else cause}); "
        "use it in torch, with the runtime eager or compile."
    )


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


def _name_axes(graph: Any, signature: Signature) -> None:
    """Name the dynamic axes "batch" and "length"; the tracer numbers them."""
    ir = library("onnx_ir")
    for value in graph.inputs:
        value.shape = ir.Shape(AXES.get(value.name, ("batch", "length")))
    source = TARGETS if TARGETS in signature.inputs else "input_ids"
    for value in graph.outputs:
        if value.shape is not None and len(value.shape) == 3:
            value.shape = ir.Shape([*AXES.get(source, ("batch", "length")), value.shape[2]])
        elif value.shape is not None and len(value.shape) == 2:
            value.shape = ir.Shape(["batch", value.shape[1]])


def _shrink(graph: Any, four_bit: set[str], dtype: str) -> None:
    """Store two 4-bit integers per byte, and store weights in the 16-bit dtype of the model if that is exact.

    Args:
        graph: the graph, changed in place.
        four_bit: names of tensors of 4-bit integers.
        dtype: the dtype in which laconic stores the model. The graph casts weights back to float32.
    """
    ir, ml_dtypes = library("onnx_ir"), library("ml_dtypes")
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
    ir = library("onnx_ir")
    stored = ir.Value(name=half.name, shape=ir.Shape(half.shape), type=ir.TensorType(half.dtype), const_value=half)
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
    back = cast.outputs[0]
    back.name, back.shape, back.type = f"{value.name}.cast", value.shape, ir.TensorType(ir.DataType.FLOAT)
    ir.convenience.replace_all_uses_with(value, back)
    del graph.initializers[value.name]
    graph.initializers[stored.name] = stored
    graph.insert_before(graph[0], cast)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the output, logging and warnings of the exporter; its errors contain the same information."""
    loggers = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export")}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)
