"""From a model to an ONNX graph: traced by torch.export, with any batch and any length, and as small as it is stored.

Attention is exported as products and a softmax (transformers' `eager`), whose patterns runtimes know and fuse; torch's
fused one would bring every guard against rows without any key.
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
from laconic.runtime.extras import library
from laconic.runtime.layers import Portable
from laconic.runtime.portable import Layers, portable
from laconic.runtime.signature import TARGETS, Signature, Traced, vectors_of

OPSET = 21
"""The first that has whole numbers of 4 bits."""
AXES = {TARGETS: ("batch", "target_length")}
"""What the axes of an input are called, where it is not (batch, length)."""
SMALL = 2**10
"""Numbers of a tensor that is not worth an operator to be cast by."""
LARGEST_FILE = 2**30
"""Bytes of weights from which they get a file of their own; protobuf ends at twice that."""
HALVES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Graph:
    """An ONNX program of `onnx_ir`, what it takes and gives, and what became of layers of codes."""

    program: Any
    signature: Signature
    layers: dict[str, Layers]

    def save(self, file: Path) -> None:
        """Write it; weights of gigabytes go to a file of their own beside it."""
        weights = sum(value.const_value.nbytes for value in self.program.model.graph.initializers.values())
        with _quiet():
            self.program.save(file, external_data=weights > LARGEST_FILE)


def graph_of(lm: LanguageModel, runtime: str, hidden: bool = False) -> Graph:
    """`lm` as a graph that `runtime` reads; with its last hidden states as an output if `hidden`.

    Raises:
        UserError: torch cannot trace this architecture, or the model does not run at all.
    """
    signature = Signature.of(lm, hidden)
    twin, layers = portable(lm, runtime)
    twin.model.set_attn_implementation("eager")
    inputs = signature.example(lm)
    dynamic = torch.export.Dim.DYNAMIC
    with evaluating(twin), torch.inference_mode(False), torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                Traced(twin.model, signature, lm.task, vectors_of(lm)),
                tuple(inputs.values()),
                input_names=signature.inputs,
                output_names=signature.outputs,
                dynamic_shapes=(tuple({0: dynamic, 1: dynamic} for _ in inputs),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            # What cannot run at all is no fault of the exporter's.
            check_runs(lm)
            raise _untraceable(lm, error) from error
    assert program is not None
    _forget_origin(program.model)
    _name_axes(program.model.graph, signature)
    names = {f"model.{name}" for name, module in twin.model.named_modules() if isinstance(module, Portable)}
    nibbles = {
        f"{name}.{tensor}"
        for name in names
        for tensor in twin.model.get_submodule(name.removeprefix("model.")).nibbles  # type: ignore[union-attr]
    }
    _shrink(program.model.graph, nibbles, str(lm.dtype).removeprefix("torch."))
    return Graph(program, signature, layers)


def _untraceable(lm: LanguageModel, error: Exception) -> UserError:
    # The exporter wraps what went wrong in advice on how to change the model's code.
    cause = error.__cause__ or error
    return UserError(
        f"The architecture '{lm.model.config.model_type}' cannot be exported: torch cannot trace "
        f"{type(lm.model).__name__} for any length ({reason_of(cause) if isinstance(cause, Exception) else cause}); "
        "use it in torch, with the runtime eager or compile."
    )


def _forget_origin(model: Any) -> None:
    """Nothing of the code that each operator was traced from: it has the paths of this machine, and many bytes."""
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
    """Say "batch" and "length" where the tracer numbered its unknowns."""
    ir = library("onnx_ir")
    for value in graph.inputs:
        value.shape = ir.Shape(AXES.get(value.name, ("batch", "length")))
    read = TARGETS if TARGETS in signature.inputs else "input_ids"
    for value in graph.outputs:
        if value.shape is not None and len(value.shape) == 3:
            value.shape = ir.Shape([*AXES.get(read, ("batch", "length")), value.shape[2]])
        elif value.shape is not None and len(value.shape) == 2:
            value.shape = ir.Shape(["batch", value.shape[1]])


def _shrink(graph: Any, nibbles: set[str], dtype: str) -> None:
    """Write two whole numbers below 16 a byte, and weights in the 16 bits that they are stored in, where that is exact.

    Every weight that is cast back is multiplied by as before: runtimes cast when they load.
    """
    ir, ml_dtypes = library("onnx_ir"), library("ml_dtypes")
    for name, value in list(graph.initializers.items()):
        if name in nibbles:
            value.const_value = ir.tensor(value.const_value.numpy().astype(ml_dtypes.uint4), name=name)
            value.dtype = ir.DataType.UINT4
        elif dtype in HALVES and value.dtype is ir.DataType.FLOAT and value.const_value.size >= SMALL:
            weight = value.const_value.numpy()
            with np.errstate(over="ignore"):
                half = weight.astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
            if np.array_equal(half.astype(np.float32), weight):
                _store_as(graph, value, ir.tensor(half, name=f"{name}.{dtype}"))


def _store_as(graph: Any, value: Any, half: Any) -> None:
    """Let every reader of an initializer read `half`, cast back to float32, in its place."""
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
    """Without what the exporter prints, logs and warns of; what it raises says the same."""
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
