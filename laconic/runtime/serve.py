"""Run the forward pass of a model in another runtime, so that evaluations and timings measure that runtime.

Only `forward` is replaced: it returns the logits or the last hidden states of the exported model. Configuration,
tokenizer, weights and anatomy stay those of the model. Inputs that the exported model does not have, such as a cache,
raise a UserError.
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
from laconic.model import LanguageModel, ModelTask
from laconic.model.predictions import report_run_errors
from laconic.runtime.engines import COMPILE, EAGER, Program, check_runtime, load_program
from laconic.runtime.graph import build_graph, exported_bytes, write_model
from laconic.runtime.portable import ExportedLayers
from laconic.runtime.signature import STATES, Signature


@dataclass
class Output(ModelOutput):
    """The outputs of an exported model, under the names of transformers."""

    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    """Only the last of them."""


@dataclass(frozen=True)
class LoadedExport:
    """An exported model that is loaded in its runtime.

    Args:
        program: the loaded model.
        signature: its inputs and outputs.
        bytes: the size of its files.
        layers: how its quantized layers were exported, by label.
    """

    program: Program
    signature: Signature
    bytes: int
    layers: dict[str, ExportedLayers]


class ExportedForward:
    """A replacement for `forward` that runs exported models. Each is exported when it is first needed.

    Args:
        lm: the model in torch.
        runtime: `ONNX` or `OPENVINO`.
        loaded: the exported model without hidden states, if it exists already.
    """

    def __init__(self, lm: LanguageModel, runtime: str, loaded: LoadedExport | None = None) -> None:
        self._lm, self.runtime = lm, runtime
        self._loaded: dict[bool, LoadedExport] = {} if loaded is None else {False: loaded}

    def load(self, hidden: bool = False) -> LoadedExport:
        """Export and load the model, unless that is done already.

        Args:
            hidden: whether the last hidden states are an additional output.

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
        is_encoder = self._lm.task is ModelTask.EMBEDDING
        loaded = self.load(output_hidden_states and not is_encoder)
        outputs = loaded.program(loaded.signature.feeds(self._lm, {"input_ids": input_ids, **inputs}))
        states = outputs.get(STATES)
        heads = {} if is_encoder else {name: outputs[name] for name in self._lm.task.output_names}
        return Output(
            **heads,
            last_hidden_state=states,
            hidden_states=None if states is None or is_encoder else (states,),
        )


class CompiledForward:
    """A replacement for `forward` that uses `torch.compile`.

    Args:
        lm: the model. It is compiled at the first call of a new shape; after several shapes, with dynamic shapes.
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
                # If the model itself fails on these inputs, this call raises its error instead.
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
        exported: runs the exported model; None if torch runs the model.
    """

    lm: LanguageModel
    runtime: str
    exported: ExportedForward | None = None

    def describe(self) -> dict[str, Any]:
        """The runtime for reports: its name, its library, and the bytes of the exported model."""
        if self.exported is None:
            return {"name": self.runtime, "library": f"torch {torch.__version__}"}
        loaded = self.exported.load()
        return {"name": self.runtime, "library": loaded.program.version, "bytes": loaded.bytes}


def serve(lm: LanguageModel, runtime: str = EAGER, loaded: LoadedExport | None = None) -> Service:
    """Make a copy of a model whose forward pass runs in a runtime.

    Args:
        lm: the model; it is not changed.
        runtime: one of `RUNTIMES`.
        loaded: its exported model, if it exists already.

    Raises:
        UserError: the runtime is unknown, a library is missing, or the runtime does not support the model's device.

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
        twin.model.forward = CompiledForward(twin)
        return Service(twin, runtime)
    exported = ExportedForward(lm, runtime, loaded)
    twin.model.forward = exported
    return Service(twin, runtime, exported)


def is_served(lm: LanguageModel) -> bool:
    """Whether `serve` made this model, so that something else than its modules runs its forward pass."""
    return isinstance(vars(lm.model).get("forward"), (CompiledForward, ExportedForward))
