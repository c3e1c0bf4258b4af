"""A model whose forward pass is another runtime's, so that whatever judges or times a model judges or times that.

Configuration, tokenizer, matrices and anatomy are the model's own; `forward` alone is replaced, and gives logits
(or the last hidden states) as the exported model does. What an exported model cannot do, such as going on from a
cache, is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from laconic.model import LanguageModel, Task
from laconic.runtime.compiled import Compiled
from laconic.runtime.extras import COMPILE, EAGER, check_runtime
from laconic.runtime.files import weights_bytes, write
from laconic.runtime.graph import graph_of
from laconic.runtime.portable import Layers
from laconic.runtime.programs import Program, program
from laconic.runtime.signature import LOGITS, STATES, Signature


@dataclass
class Answer(ModelOutput):
    """What an exported model gives, under the names of transformers."""

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    """The last of them alone."""


@dataclass(frozen=True)
class Ready:
    """An exported model that is loaded.

    bytes:  of its file or files.
    layers: what became of layers of codes, by kind.
    """

    program: Program
    signature: Signature
    bytes: int
    layers: dict[str, Layers]


class Exported:
    """`forward` of a model by its exported programs, each made when it is first asked for."""

    def __init__(self, lm: LanguageModel, runtime: str, ready: Ready | None = None) -> None:
        self._lm, self.runtime = lm, runtime
        self._ready: dict[bool, Ready] = {} if ready is None else {False: ready}

    def ready(self, hidden: bool = False) -> Ready:
        """The program; with the last hidden states among what it gives if `hidden`.

        Raises:
            UserError: the model cannot be exported, or the runtime cannot load it.
        """
        if hidden not in self._ready:
            with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                graph = graph_of(self._lm, self.runtime, hidden)
                file = write(self._lm, graph, self.runtime, Path(folder))
                size = weights_bytes(Path(folder))
                self._ready[hidden] = Ready(program(self.runtime, file), graph.signature, size, graph.layers)
        return self._ready[hidden]

    def __call__(
        self, input_ids: Tensor, *, output_hidden_states: bool = False, use_cache: bool = False, **given: Tensor
    ) -> Answer:
        plain = self._lm.task is Task.EMBEDDING
        ready = self.ready(output_hidden_states and not plain)
        found = ready.program(ready.signature.feeds(self._lm, {"input_ids": input_ids, **given}))
        states = found.get(STATES)
        return Answer(
            logits=found.get(LOGITS),
            last_hidden_state=states,
            hidden_states=None if states is None or plain else (states,),
        )


@dataclass(frozen=True)
class Service:
    """lm: the model to judge and to time; exported: what it is served by, None where torch runs it."""

    lm: LanguageModel
    runtime: str
    exported: Exported | None = None

    def about(self) -> dict[str, Any]:
        """What a report says of the runtime: its name, its library, and the bytes of the exported model."""
        if self.exported is None:
            return {"name": self.runtime, "library": f"torch {torch.__version__}"}
        ready = self.exported.ready()
        return {"name": self.runtime, "library": ready.program.version, "bytes": ready.bytes}


def serve(lm: LanguageModel, runtime: str = EAGER, ready: Ready | None = None) -> Service:
    """`lm` as `runtime` runs it; `ready`, where it is exported already. The model itself is left as it is.

    `compile` compiles at the first call of each shape, or of any shape once there were several.

    Raises:
        UserError: there is no such runtime, its libraries are missing, or the model is on a device that it cannot use.
    """
    check_runtime(runtime, lm.device.type)
    if runtime == EAGER:
        return Service(lm, runtime)
    twin = lm.shallow_copy()
    if runtime == COMPILE:
        twin.model.forward = Compiled(twin)
        return Service(twin, runtime)
    exported = Exported(lm, runtime, ready)
    twin.model.forward = exported
    return Service(twin, runtime, exported)
