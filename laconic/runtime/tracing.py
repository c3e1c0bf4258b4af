"""Trace a model of torch into an ONNX program, for any batch size and length."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from laconic.calibrate.passes import check_runs
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel
from laconic.model.stock import SWITCHING_TYPES, text_config
from laconic.runtime.axes import axis_names
from laconic.runtime.cache_layout import AS_PROMPT, PRESENT

OPSET = 21
"""The first ONNX opset with integers of 4 bits."""
OPERATION = re.compile(r"\baten\.(\w+)")
"""The name of an operation of torch in a message of its exporter."""
FIXED = "inferred a static shape"
"""The words of torch's exporter for an axis whose length the graph fixes."""
GUARD = "Could not guard"
"""Its words for a condition on the numbers in a tensor."""
SPARSE = "block_sparse"
"""The attention type of BigBird that short texts do not have."""
RECURRENT = {"linear_attention", "hybrid"}
"""The names that configurations give to layers with a state space or a linear attention, such as those of Mamba and
Qwen3-Next."""
_LOOP = "its state spaces or linear attentions compute one token or chunk after another, whose number a graph fixes"


def trace(lm: LanguageModel, traced: nn.Module, example: Batch, outputs: Sequence[str]) -> Any:
    """Trace a model.

    Args:
        lm: the model.
        traced: a copy of it, or of a part of it, with operators that the runtime supports. It takes inputs by place.
        example: inputs of the sizes to trace with, by name.
        outputs: the names of the outputs.

    Returns:
        The ONNX program of torch, which contains an `onnx_ir` model.

    Raises:
        UserError: torch cannot trace this architecture, or the model does not run.
    """
    check_traceable(lm)
    tensors = tuple(example.values())
    traced.eval()
    with torch.inference_mode(False), torch.no_grad(), quiet():
        _copy_inference_tensors(traced)
        try:
            program = torch.onnx.export(
                traced,
                tensors,
                input_names=tuple(example),
                output_names=tuple(outputs),
                dynamic_shapes=(tuple(map(_dynamic_axes, example, tensors)),),
                custom_translation_table=_translations(),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            # If the model itself cannot run, raise that error instead.
            check_runs(lm)
            cached = any(name.startswith(PRESENT) for name in outputs)
            raise _cannot_export(lm, explain(str(error.__cause__ or error)), cached) from error
    assert program is not None
    return program


def _copy_inference_tensors(model: nn.Module) -> None:
    """Replace parameters that were made in inference mode by copies: torch cannot trace them."""
    copies: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_inference():
                if parameter not in copies:
                    copies[parameter] = nn.Parameter(parameter.clone(), requires_grad=False)
                setattr(module, name, copies[parameter])


def check_traceable(lm: LanguageModel) -> None:
    """Check that the same operations are computed for texts of any length.

    Raises:
        UserError: the class selects its attention by the length of the text, as BigBird does, or has state
            spaces or linear attentions, whose graph would take minutes and hold for one number of chunks only.
    """
    config = lm.model.config
    if config.model_type in SWITCHING_TYPES and getattr(config, "attention_type", None) == SPARSE:
        raise UserError(
            f"The architecture '{config.model_type}' cannot be exported with its block-sparse attention: short texts "
            "are read with full attention, and one graph holds only one of them; use it in torch, with the runtime "
            "eager or compile, or set attention_type to 'original_full' in its config.json, which changes its outputs "
            "for long texts."
        )
    if RECURRENT.intersection(getattr(text_config(config), "layer_types", None) or ()):
        raise _cannot_export(lm, _LOOP)


def _dynamic_axes(name: str, tensor: Tensor) -> dict[int, Any]:
    names = axis_names(name, tensor.dim())
    return {axis: torch.export.Dim.DYNAMIC for axis, name in enumerate(names) if name is not None}


def explain(message: str) -> str:
    """The reason in a message of the exporter, which itself advises to change the code of the model."""
    if FIXED in message:
        return "its code goes through the tokens, or chunks of them, in a loop, which fixes their number"
    if GUARD in message:
        return "the numbers in a text decide which operations its code computes"
    operation = OPERATION.search(message)
    return (
        "torch does not follow its code"
        if operation is None
        else f"its operation aten.{operation[1]} is not translated"
    )


def _cannot_export(lm: LanguageModel, reason: str, cached: bool = False) -> UserError:
    if cached:
        return UserError(
            f"The architecture '{lm.model.config.model_type}' cannot be exported with a cache: torch makes no graph "
            f"that holds for every text, as {reason}; {AS_PROMPT}."
        )
    return UserError(
        f"The architecture '{lm.model.config.model_type}' cannot be exported: torch makes no graph that holds for "
        f"every text, as {reason}; use it in torch, with the runtime eager or compile."
    )


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations of operations that torch translates wrongly."""
    op: Any = import_module("onnxscript").opset21

    def subtract_from(tensor: Any, number: float, alpha: float = 1.0) -> Any:
        """`number - alpha * tensor`. torch's own translation refuses a tensor of integers with a float number."""
        # A length of the graph is a whole number too, and no int of Python.
        if tensor.dtype.is_floating_point() or not isinstance(number, float):
            number, scaled = op.CastLike(number, tensor), tensor
        else:
            scaled = op.Cast(tensor, to=1)
        return op.Sub(number, scaled if alpha == 1 else op.Mul(scaled, op.CastLike(alpha, scaled)))

    return {torch.ops.aten.rsub.Scalar: subtract_from}


@contextmanager
def quiet() -> Iterator[None]:
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
