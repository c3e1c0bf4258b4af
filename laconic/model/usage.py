"""Find the matrices that a run over text calls as layers, reads directly, or never calls.

A format can replace a linear only if no other code reads its weight. Some classes do read it: the mixer of Mamba
multiplies by `dt_proj.weight` itself, and RWKV divides two of its weights in place. Other layers are never called, such
as a cross-attention without an encoder, or a vision tower. One forward pass of the class on the meta device, whose
function calls are recorded, shows both.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.formats.expert_layer import is_experts, routed_arguments
from laconic.model.stock import MODEL_ERRORS, build_empty, silence_transformers
from laconic.model.task import reads_choices

MATRICES = (nn.Linear, Conv1D, nn.Embedding)
"""The modules whose weights are watched, besides the experts of mixtures."""
METADATA = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in ("dtype", "device", "shape", "ndim", "is_meta", "requires_grad", "layout", "is_cuda", "itemsize")
) | {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point, torch.Tensor.element_size}
"""Functions of a weight that do not read its numbers; a format has a `weight` on the same device for them."""
LENGTH = 8
"""The number of tokens in the row that is run."""
ATTENTION, EXPERTS = "eager", "batched_mm"
"""The implementations of attention and experts in which no shape depends on numbers."""


@dataclass(frozen=True)
class Usage:
    """The linears and embeddings that one forward pass over text uses, by path.

    Args:
        matrices: all linears, modules of experts and embeddings of the class.
        called: the linears and modules of experts that ran, and all embeddings. If numbers choose among equal layers,
            such as experts, all of them are included.
        read: the matrices whose weight or bias was used by other code.
        several: the linears that return more than one tensor.
        experts_per_token: the number of experts that the router sends a token to, by the path of the experts.
    """

    matrices: frozenset[str]
    called: frozenset[str]
    read: frozenset[str]
    several: frozenset[str] = frozenset()
    experts_per_token: Mapping[str, int] = field(default_factory=dict)

    @property
    def uncalled(self) -> frozenset[str]:
        """The matrices that a run over text does not use."""
        return self.matrices - self.called - self.read

    def obstacle(self, path: str) -> str | None:
        """The reason why the matrix at `path` cannot be compressed, as a clause; None if it can."""
        if path in self.read:
            return "other code of the model reads its weight directly, so a compressed layer cannot replace it"
        if path in self.several:
            return "its module returns more than the product, as the routers of some mixtures of experts do"
        if path in self.uncalled:
            return "the model does not call it for text"
        return None


@dataclass(frozen=True)
class _Traced:
    """A class with its configuration; two are equal if the texts of their configurations are equal."""

    model: type[PreTrainedModel]
    config_text: str
    globally: bool
    config: PreTrainedConfig = field(compare=False)


def trace_usage(model: PreTrainedModel, *, globally: bool = False) -> Usage | None:
    """Find out how the class of a model uses its matrices.

    Args:
        model: a model in any state: compressed or not, with or without weights.
        globally: whether it is run with global attention at all tokens, as Longformer can be.

    Returns:
        The usage; None if the class cannot be run without its weights.
    """
    values = model.config.to_dict()
    for name in ("_name_or_path", "quantization_config", "transformers_version"):
        values.pop(name, None)
    return _trace(_Traced(type(model), json.dumps(values, default=str, sort_keys=True), globally, model.config))


@lru_cache(maxsize=256)
def _trace(traced: _Traced) -> Usage | None:
    # Some classes draw random numbers when they run, which must not change the results of a seed.
    with torch.random.fork_rng(devices=[]):
        for options in ({}, {"use_cache": False}):
            with suppress(*MODEL_ERRORS):
                return _record(_build_on_meta(traced), traced.globally, options).usage
        with suppress(*MODEL_ERRORS):
            return _record(_build_with_zeros(traced), traced.globally, {"use_cache": False}).usage_of_equals
    return None


def _build_on_meta(traced: _Traced) -> PreTrainedModel:
    config = copy.deepcopy(traced.config)
    config._attn_implementation = ATTENTION
    return build_empty(traced.model, config)


def _build_with_zeros(traced: _Traced) -> PreTrainedModel:
    """The model on the CPU; each weight is a single zero that is expanded to its shape, which takes little memory."""
    empty, zero = _build_on_meta(traced), torch.zeros(())
    weights = {name: zero.to(tensor.dtype).expand(tensor.shape) for name, tensor in empty.named_parameters()}
    with silence_transformers():
        return traced.model.from_pretrained(None, config=empty.config, state_dict=weights)


def _record(model: PreTrainedModel, globally: bool, options: Mapping[str, bool]) -> "_Watch":
    """Run the model on one row of tokens and record which matrices it uses."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part._can_set_experts_implementation():
            part.set_experts_implementation(EXPERTS)
    words: Any = model.get_input_embeddings()
    ids = torch.arange(5, 5 + LENGTH, device=model.device)[None] % words.num_embeddings
    if reads_choices(type(model)):
        ids = ids[None]
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < words.num_embeddings:
        # Classifiers among the encoder-decoders read the hidden state of this token.
        ids[..., -1] = end
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    if globally:
        inputs["global_attention_mask"] = torch.ones_like(ids)
    watch = _Watch(model)
    with torch.no_grad(), watch.hooks(), watch:
        model.eval()(**inputs, **options)
    return watch


class _Watch(TorchFunctionMode):
    """Records which matrices run, and which weights a function gets while their module does not run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._matrices = {
            name: module
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, MATRICES) or is_experts(module)
        }
        # A word embedding may be used only through the embeddings of encoder and decoder that are tied to it.
        self.called = {name for name, module in self._matrices.items() if isinstance(module, nn.Embedding)}
        self.read: set[str] = set()
        self.several: set[str] = set()
        self.experts_per_token: dict[str, int] = {}
        self._running: list[nn.Module] = []
        self._owners: dict[int, list[str]] = {}
        for name, module in self._matrices.items():
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append(name)

    @property
    def usage(self) -> Usage:
        """The usage that was recorded."""
        return self._usage_of(self.called)

    @property
    def usage_of_equals(self) -> Usage:
        """The usage, if a matrix also counts as called when one was called whose path differs only in numbers.

        With weights of zero, the choice among experts is arbitrary.
        """
        patterns = {re.sub(r"\d+", "N", path) for path in self.called}
        called = {path for path in self._matrices if re.sub(r"\d+", "N", path) in patterns}
        return self._usage_of(called)

    def _usage_of(self, called: set[str]) -> Usage:
        return Usage(
            frozenset(self._matrices),
            frozenset(called),
            frozenset(self.read),
            frozenset(self.several),
            self.experts_per_token,
        )

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """A context with hooks on every matrix."""
        names: dict[nn.Module, list[str]] = {}
        for name, module in self._matrices.items():
            names.setdefault(module, []).append(name)
        handles = []
        for module, paths in names.items():
            handles.append(module.register_forward_pre_hook(self._start_hook(paths), with_kwargs=True))
            handles.append(module.register_forward_hook(self._end_hook(paths)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in METADATA:
            for value in (*args, *(kwargs or {}).values()):
                for item in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(item, nn.Parameter):
                        self._record_read(item)
        return func(*args, **(kwargs or {}))

    def _record_read(self, parameter: nn.Parameter) -> None:
        owners = self._owners.get(id(parameter), [])
        if not any(self._matrices[name] is module for name in owners for module in self._running):
            self.read.update(owners)

    def _start_hook(self, paths: list[str]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.called.update(paths)
            self._running.append(module)
            if is_experts(module):
                _, index, _ = routed_arguments(args, kwargs)
                self.experts_per_token |= dict.fromkeys(paths, index.shape[-1])

        return hook

    def _end_hook(self, paths: list[str]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._running.pop()
            if not isinstance(output, torch.Tensor):
                self.several.update(paths)

        return hook
