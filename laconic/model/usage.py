"""Which matrices of a model a run over text uses as layers, which it reads directly, and which it never calls.

A format can replace a linear only if nothing else reads its weight. Some classes do: Mamba's mixer multiplies by
`dt_proj.weight` itself, RWKV divides two of its weights in place. Other layers are never called: cross-attention to an
encoder that is not there, the tower of a vision model. One forward pass of the class on the meta device is watched to
find both.
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

from laconic.model.stock import MODEL_ERRORS, build_empty, silence_transformers

MATRICES = (nn.Linear, Conv1D, nn.Embedding)
"""Whose weights are watched."""
FACTS = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in ("dtype", "device", "shape", "ndim", "is_meta", "requires_grad", "layout", "is_cuda", "itemsize")
) | {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point, torch.Tensor.element_size}
"""What anyone may ask of a weight: a format has a weight of the same device, and no number is looked at."""
LENGTH = 8
"""Tokens of the row that is run."""
DRY = {"attention": "eager", "experts": "batched_mm"}
"""The ways to compute in which no shape depends on numbers."""


@dataclass(frozen=True)
class Usage:
    """What one forward pass over text did with the linears and embeddings of a model, by path.

    Args:
        matrices: all that the class makes.
        called: those that ran, and all embeddings; of equals that numbers choose among, such as experts, all.
        read: those whose weight or bias something else computed with.
    """

    matrices: frozenset[str]
    called: frozenset[str]
    read: frozenset[str]

    @property
    def uncalled(self) -> frozenset[str]:
        """The matrices that a run over text computes nothing with."""
        return self.matrices - self.called - self.read

    def obstacle(self, path: str) -> str | None:
        """Why the matrix at `path` cannot be compressed, as a clause; None where it can."""
        if path in self.read:
            return "another part of the model computes with its numbers itself, so nothing can stand in its place"
        if path in self.uncalled:
            return "no run over text calls it"
        return None


@dataclass(frozen=True)
class _Kind:
    """A class and its configuration; two are equal where the configuration is spelled the same."""

    model: type[PreTrainedModel]
    spelled: str
    globally: bool
    config: PreTrainedConfig = field(compare=False)


def trace_usage(model: PreTrainedModel, *, globally: bool = False) -> Usage | None:
    """Find out how the class of a model uses the matrices that it makes of its configuration.

    Args:
        model: a model in any state: compressed or not, with or without weights.
        globally: it is run with global attention at some tokens.

    Returns:
        What was seen; None where the class cannot be run without its weights.
    """
    said = model.config.to_dict()
    for name in ("_name_or_path", "quantization_config", "transformers_version"):
        said.pop(name, None)
    return _seen(_Kind(type(model), json.dumps(said, default=str, sort_keys=True), globally, model.config))


@lru_cache(maxsize=256)
def _seen(kind: _Kind) -> Usage | None:
    # Some classes draw numbers as they run, which is to change nothing that a seed decides.
    with torch.random.fork_rng(devices=[]):
        return _seen_by_running(kind)


def _seen_by_running(kind: _Kind) -> Usage | None:
    for asked in ({}, {"use_cache": False}):
        with suppress(*MODEL_ERRORS):
            return _watched(_on_meta(kind), kind.globally, asked).usage
    with suppress(*MODEL_ERRORS):
        return _watched(_of_zeros(kind), kind.globally, {"use_cache": False}).usage_of_equals
    return None


def _on_meta(kind: _Kind) -> PreTrainedModel:
    config = copy.deepcopy(kind.config)
    config._attn_implementation = DRY["attention"]
    return build_empty(kind.model, config)


def _of_zeros(kind: _Kind) -> PreTrainedModel:
    """The model on the CPU, each weight one zero expanded to its shape, which takes next to no memory."""
    empty, zero = _on_meta(kind), torch.zeros(())
    weights = {name: zero.to(tensor.dtype).expand(tensor.shape) for name, tensor in empty.named_parameters()}
    with silence_transformers():
        return kind.model.from_pretrained(None, config=empty.config, state_dict=weights)


def _watched(model: PreTrainedModel, globally: bool, asked: Mapping[str, bool]) -> "_Watch":
    """Run the model on one row of tokens and record what it does."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part._can_set_experts_implementation():
            part.set_experts_implementation(DRY["experts"])
    words: Any = model.get_input_embeddings()
    ids = torch.arange(5, 5 + LENGTH, device=model.device)[None] % words.num_embeddings
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < words.num_embeddings:
        # The classifiers among the encoder-decoders read their answer there.
        ids[:, -1] = end
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    if globally:
        inputs["global_attention_mask"] = torch.ones_like(ids)
    watch = _Watch(model)
    with torch.no_grad(), watch.listening(), watch:
        model.eval()(**inputs, **asked)
    return watch


class _Watch(TorchFunctionMode):
    """Records which matrices run, and every function that is given the weight of one that does not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._matrices = {
            name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, MATRICES)
        }
        # A word embedding may only lend its matrix to those of the encoder and the decoder.
        self.called = {name for name, module in self._matrices.items() if isinstance(module, nn.Embedding)}
        self.read: set[str] = set()
        self._running: list[nn.Module] = []
        self._owners: dict[int, list[str]] = {}
        for name, module in self._matrices.items():
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append(name)

    @property
    def usage(self) -> Usage:
        """What was seen."""
        return Usage(frozenset(self._matrices), frozenset(self.called), frozenset(self.read))

    @property
    def usage_of_equals(self) -> Usage:
        """The same, with all called whose paths differ in numbers alone from one that was: zeros chose among them."""
        seen = {_without_numbers(path) for path in self.called}
        called = {path for path in self._matrices if _without_numbers(path) in seen}
        return Usage(frozenset(self._matrices), frozenset(called), frozenset(self.read))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """With hooks on every matrix, which are gone afterwards."""
        names: dict[nn.Module, list[str]] = {}
        for name, module in self._matrices.items():
            names.setdefault(module, []).append(name)
        handles = []
        for module, paths in names.items():
            handles.append(module.register_forward_pre_hook(self._begins(paths)))
            handles.append(module.register_forward_hook(self._ends))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in FACTS:
            for value in (*args, *(kwargs or {}).values()):
                for one in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(one, nn.Parameter):
                        self._note(one)
        return func(*args, **(kwargs or {}))

    def _note(self, parameter: nn.Parameter) -> None:
        owners = self._owners.get(id(parameter), [])
        if not any(self._matrices[name] is module for name in owners for module in self._running):
            self.read.update(owners)

    def _begins(self, paths: list[str]) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, _: Any) -> None:
            self.called.update(paths)
            self._running.append(module)

        return hook

    def _ends(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        self._running.pop()


def _without_numbers(path: str) -> str:
    return re.sub(r"\d+", "N", path)
