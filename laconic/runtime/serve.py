"""Run the forward pass of a model in another runtime, so that evaluations and timings measure that runtime.

Only `forward` is replaced: it returns the logits or the last hidden states of the exported model. Configuration,
tokenizer, weights and anatomy stay those of the model. Inputs that the exported model does not have raise a UserError.
`generate` works as with torch: a call with a cache runs an exported model that has one.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from laconic.errors import UserError, reason_of
from laconic.model import Batch, LanguageModel, ModelTask
from laconic.model.predictions import report_run_errors
from laconic.runtime.axes import SOURCE_MASK, STATES_READ
from laconic.runtime.engines import COMPILE, EAGER, Program, check_runtime
from laconic.runtime.graph import exported_bytes
from laconic.runtime.portable import ExportedLayers
from laconic.runtime.session_cache import session_of
from laconic.runtime.sessions import LOGITS, CachedProgram
from laconic.runtime.signature import POSITION_IDS, STATES, TARGETS, Signature
from laconic.runtime.written import Seq2SeqProgram, write_graphs


@dataclass
class Output(ModelOutput):
    """The outputs of an exported model, under the names of transformers."""

    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    """Only the last of them."""
    past_key_values: Any = None


@dataclass(frozen=True)
class LoadedExport:
    """An exported model that is loaded in its runtime.

    Args:
        program: the loaded model.
        signature: its inputs and outputs.
        bytes: the size of its files.
        layers: how its quantized layers were exported, by label.
        cached: whether it has a cache.
        is_only: whether no other graph can be made, as the model in torch has no weights. It gives no hidden states.
    """

    program: Program
    signature: Signature
    bytes: int
    layers: dict[str, ExportedLayers]
    cached: bool = False
    is_only: bool = False


class ExportedForward:
    """A replacement for `forward` that runs exported models. Each is exported when it is first needed.

    Args:
        lm: the model in torch.
        runtime: `ONNX` or `OPENVINO`.
        loaded: the exported model without hidden states, if it exists already.
    """

    def __init__(self, lm: LanguageModel, runtime: str, loaded: LoadedExport | None = None) -> None:
        self._lm, self.runtime = lm, runtime
        self._loaded: dict[tuple[bool, bool], LoadedExport] = {}
        if loaded is not None:
            self._loaded[False, loaded.cached] = loaded

    def load(self, hidden: bool = False, cached: bool = False) -> LoadedExport:
        """Export and load the model, unless that is done already.

        Args:
            hidden: whether the last hidden states are an additional output.
            cached: whether the model needs a cache. Without, one with a cache is taken if it is loaded.

        Raises:
            UserError: the model cannot be exported, or the runtime cannot load it.
        """
        known = [loaded for loaded in self._loaded.values() if loaded.is_only]
        known += [self._loaded[key] for key in ((hidden, cached), (hidden, True)) if key in self._loaded]
        if known:
            return known[0]
        with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            folder = Path(temporary)
            written = write_graphs(self._lm, self.runtime, folder, hidden=hidden, cached=cached)
            nbytes = exported_bytes(folder)
            loaded = LoadedExport(written.load(), written.signature, nbytes, written.layers, cached)
        self._loaded[hidden, cached] = loaded
        return loaded

    # The names are those that `generate` looks for in a signature.
    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        **inputs: Any,
    ) -> Output:
        inputs.pop("return_dict", None)
        encoded = inputs.pop("encoder_outputs", None)
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            POSITION_IDS: position_ids,
            **inputs,
        }
        batch = {name: tensor for name, tensor in given.items() if tensor is not None}
        if use_cache or past_key_values is not None:
            cache = DynamicCache() if past_key_values is None else past_key_values
            if self._lm.task is ModelTask.SEQ2SEQ:
                return self._read_targets(batch, encoded, cache)
            return self._read_on(batch, cache)
        is_encoder = self._lm.task is ModelTask.EMBEDDING
        loaded = self.load(output_hidden_states and not is_encoder)
        outputs = loaded.program(loaded.signature.feeds(self._lm, batch))
        states = outputs.get(STATES)
        heads = {} if is_encoder else {name: outputs[name] for name in self._lm.task.output_names}
        return Output(
            **heads,
            last_hidden_state=states,
            hidden_states=None if states is None or is_encoder else (states,),
        )

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> BaseModelOutput:
        """Run the encoder of an encoder-decoder: a replacement for its `forward`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        source = self._seq2seq.read_source({"input_ids": input_ids, "attention_mask": mask})
        return BaseModelOutput(last_hidden_state=source[STATES_READ])

    def _read_targets(self, batch: Batch, encoded: Any, cache: Cache) -> Output:
        """Read the tokens of the decoder that follow those in a cache."""
        program, mask = self._seq2seq, batch.get("attention_mask")
        states = self.encode(batch["input_ids"], mask)[0] if encoded is None else encoded[0]
        feeds = {
            "input_ids": batch[TARGETS],
            STATES_READ: states,
            SOURCE_MASK: torch.ones(states.shape[:2], dtype=torch.long) if mask is None else mask,
        }
        return Output(logits=session_of(cache, program.decoder).read(feeds)[LOGITS], past_key_values=cache)

    @property
    def _seq2seq(self) -> Seq2SeqProgram:
        program = self.load(cached=True).program
        assert isinstance(program, Seq2SeqProgram), "an encoder-decoder has encoder and decoder apart"
        return program

    def _read_on(self, batch: Batch, cache: Cache) -> Output:
        """Read the tokens that follow those in a cache."""
        loaded = self.load(cached=True)
        assert isinstance(loaded.program, CachedProgram), "it was loaded for its cache"
        session = session_of(cache, loaded.program)
        ids = batch["input_ids"]
        batch.setdefault("attention_mask", torch.ones(len(ids), session.length + ids.shape[1], dtype=torch.long))
        if (positions := batch.pop(POSITION_IDS, None)) is not None and POSITION_IDS in loaded.signature.inputs:
            batch[POSITION_IDS] = positions.expand_as(ids)
        logits = session.read(loaded.signature.feeds(self._lm, batch))[LOGITS]
        return Output(logits=logits, past_key_values=cache)


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
    if lm.task is ModelTask.SEQ2SEQ:
        encoder: Any = twin.model.get_encoder()
        encoder.forward = exported.encode
    return Service(twin, runtime, exported)


def is_served(lm: LanguageModel) -> bool:
    """Whether `serve` made this model, so that something else than its modules runs its forward pass."""
    return isinstance(vars(lm.model).get("forward"), (CompiledForward, ExportedForward))
