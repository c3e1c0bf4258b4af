"""A model whose forward pass is run by another runtime, so that evaluations and timings measure that runtime.

Configuration, tokenizer, matrices and anatomy are the model's own. Only `forward` is replaced, and returns the logits
or the last hidden states of the exported model. Inputs that an exported model does not have, such as a cache, are
refused.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
from transformers.utils.generic import ModelOutput

from laconic.errors import UserError, reason_of
from laconic.model import LanguageModel, Task
from laconic.model.predictions import report_run_errors
from laconic.runtime.engines import COMPILE, EAGER, Program, check_runtime, load_program
from laconic.runtime.files import exported_bytes, write_model
from laconic.runtime.graph import build_graph
from laconic.runtime.portable import ExportedLayers
from laconic.runtime.signature import LOGITS, STATES, Signature


@dataclass
class Output(ModelOutput):
    """The outputs of an exported model, under the names of transformers."""

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    """Only the last of them."""


@dataclass(frozen=True)
class LoadedExport:
    """An exported model that is loaded.

    Args:
        program: what runs it.
        signature: its inputs and outputs.
        bytes: of its files.
        layers: how its quantized layers were exported, by label.
    """

    program: Program
    signature: Signature
    bytes: int
    layers: dict[str, ExportedLayers]


class Exported:
    """The forward pass of a model by its exported programs; each is made when it is first needed.

    Args:
        lm: the model in torch.
        runtime: `ONNX` or `OPENVINO`.
        loaded: the program without hidden states, if it was exported before.
    """

    def __init__(self, lm: LanguageModel, runtime: str, loaded: LoadedExport | None = None) -> None:
        self._lm, self.runtime = lm, runtime
        self._loaded: dict[bool, LoadedExport] = {} if loaded is None else {False: loaded}

    def load(self, hidden: bool = False) -> LoadedExport:
        """The program, with the last hidden states among its outputs if `hidden`.

        Raises:
            UserError: the model cannot be exported, or the runtime cannot load it.
        """
        if hidden not in self._loaded:
            with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
                folder = Path(temporary)
                graph = build_graph(self._lm, self.runtime, hidden)
                program = load_program(self.runtime, write_model(self._lm, graph, self.runtime, folder))
                self._loaded[hidden] = LoadedExport(program, graph.signature, exported_bytes(folder), graph.layers)
        return self._loaded[hidden]

    def __call__(
        self, input_ids: Tensor, *, output_hidden_states: bool = False, use_cache: bool = False, **inputs: Tensor
    ) -> Output:
        is_encoder = self._lm.task is Task.EMBEDDING
        loaded = self.load(output_hidden_states and not is_encoder)
        outputs = loaded.program(loaded.signature.feeds(self._lm, {"input_ids": input_ids, **inputs}))
        states = outputs.get(STATES)
        return Output(
            logits=outputs.get(LOGITS),
            last_hidden_state=states,
            hidden_states=None if states is None or is_encoder else (states,),
        )


class Compiled:
    """The forward pass of a model by `torch.compile`.

    Args:
        lm: the model; it is compiled at the first call of each shape, or for any shape once it saw several.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm, self._plain = lm, lm.model.forward
        self._forward = torch.compile(lm.model.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Token ids may be positional.
        with report_run_errors(self._lm, args[0] if args else kwargs["input_ids"]):
            try:
                return self._forward(*args, **kwargs)
            except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
                # An error of the model itself is raised here instead.
                self._plain(*args, **kwargs)
                raise UserError(
                    f"torch.compile fails on {type(self._lm.model).__name__}: {reason_of(error)}; it needs a C++ "
                    "compiler, or use the runtime eager."
                ) from error


@dataclass(frozen=True)
class Service:
    """A model and the runtime that runs it.

    Args:
        lm: the model to evaluate and to time.
        runtime: one of `RUNTIMES`.
        exported: its exported programs; None where torch runs it.
    """

    lm: LanguageModel
    runtime: str
    exported: Exported | None = None

    def describe(self) -> dict[str, Any]:
        """The runtime for reports: its name, its library, and the bytes of the exported model."""
        if self.exported is None:
            return {"name": self.runtime, "library": f"torch {torch.__version__}"}
        loaded = self.exported.load()
        return {"name": self.runtime, "library": loaded.program.version, "bytes": loaded.bytes}


def serve(lm: LanguageModel, runtime: str = EAGER, loaded: LoadedExport | None = None) -> Service:
    """A model that a runtime runs.

    Args:
        lm: the model; it is not changed.
        runtime: one of `RUNTIMES`. `compile` compiles at the first call of each shape.
        loaded: its exported model, if there is one already.

    Raises:
        UserError: there is no such runtime, a library is missing, or it does not run on the device of the model.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
        >>> service = serve(LanguageModel.of(BertModel(config)), "eager")
        >>> service.describe()["name"], service.lm.model(torch.tensor([[1, 2]])).last_hidden_state.shape
        ('eager', torch.Size([1, 2, 8]))
    """
    check_runtime(runtime, lm.device.type)
    if runtime == EAGER:
        return Service(lm, runtime)
    twin = lm.shallow_copy()
    if runtime == COMPILE:
        twin.model.forward = Compiled(twin)
        return Service(twin, runtime)
    exported = Exported(lm, runtime, loaded)
    twin.model.forward = exported
    return Service(twin, runtime, exported)
