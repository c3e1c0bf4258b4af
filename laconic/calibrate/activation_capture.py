"""Capture the inputs and outputs of modules while a model runs, end a run early, and find the residual stream.

A block adds the outputs of its writers (the output projections) to the residual stream. Before the first writer the
stream is the block's input. Before a later writer it is the running sum if the block normalises inside its sublayers
(pre-LN), and the input of the sublayer if it normalises between them (post-LN). `find_residual` tells the two apart
from the activations. For any other block (such as one that normalises the output of a sublayer) the stream is unknown.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laconic.model import Stack
from laconic.model.site import has_module


class ActivationCapture(ExitStack):
    """A context manager that captures the inputs and outputs of some modules with forward hooks.

    `inputs` and `outputs` hold a list of tensors for each path, one tensor per call. The input is the keyword argument
    `hidden_states`, or the first positional argument; of an output that is a tuple or list, the first entry is kept.

    Args:
        model: the model.
        paths: paths of the modules, as in `nn.Module.get_submodule`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.ReLU())
        >>> with ActivationCapture(model, ["0"]) as capture:
        ...     _ = model(torch.tensor([-1.0, 2.0]))
        >>> capture.outputs["0"][0].tolist()
        [0.0, 2.0]
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        super().__init__()
        self._modules = {path: model.get_submodule(path) for path in paths}
        self.inputs: dict[str, list[Tensor]] = {path: [] for path in self._modules}
        self.outputs: dict[str, list[Tensor]] = {path: [] for path in self._modules}

    def __enter__(self) -> Self:
        for path, module in self._modules.items():
            for handle in self._register_hooks(path, module):
                self.callback(handle.remove)
        return self

    def clear(self) -> None:
        """Remove all captured tensors."""
        for tensors in (*self.inputs.values(), *self.outputs.values()):
            tensors.clear()

    def _register_hooks(self, path: str, module: nn.Module) -> Iterator[RemovableHandle]:
        # Two hooks, because a forward pass may be ended inside the module, after its input was captured.
        def on_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.inputs[path].append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

        def on_return(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.outputs[path].append(output[0] if isinstance(output, (tuple, list)) else output)

        yield module.register_forward_pre_hook(on_call, with_kwargs=True)
        yield module.register_forward_hook(on_return)


class RunEnded(Exception):  # noqa: N818 - it ends a run, and is no error
    """Raised inside a forward pass to end it early."""


class RunUntil(ExitStack):
    """A context manager whose `run` ends a forward pass early, once all `modules` have been called.

    The first complete forward pass counts how often each module is called. Later passes end as soon as every module
    has been called that often. A pass is not ended if a module is not called, such as an expert without tokens. Other
    hooks on the modules must be registered before this context is entered, or the last call does not reach them.

    Args:
        modules: the modules to wait for.
        returned: True ends the pass after the last module has returned, False when it is about to be called.
    """

    def __init__(self, modules: Iterable[nn.Module], *, returned: bool = False) -> None:
        super().__init__()
        self._modules = list(dict.fromkeys(modules))
        self._returned = returned
        self._calls: Counter[nn.Module] = Counter()
        self._usual: Counter[nn.Module] | None = None

    def __enter__(self) -> Self:
        for module in self._modules:
            hook = module.register_forward_hook if self._returned else module.register_forward_pre_hook
            self.callback(hook(self._count).remove)
        return self

    @contextmanager
    def run(self) -> Iterator[None]:
        """Return a context for one forward pass, which may end early; code after the call of the model is skipped."""
        self._calls = Counter()
        with suppress(RunEnded):
            yield
        if self._usual is None and self._calls.keys() == set(self._modules):
            self._usual = self._calls

    def _count(self, module: nn.Module, *_: Any) -> None:
        self._calls[module] += 1
        if self._usual is not None and self._calls >= self._usual:
            raise RunEnded


TOLERANCE = 1e-3
"""Two activations count as equal if their relative difference is at most this."""


class Residual(Enum):
    """The rule that gives the residual stream to which the output of a writer is added."""

    SUM = "the block's input and the outputs written so far"
    READ = "what the sublayer reads"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Sublayer:
    """One attention or feed-forward sublayer.

    Args:
        reader: path of the first projection that reads the residual stream (the query or fused projection of an
            attention, the first inner projection of a feed-forward).
        writer: path of the output projection, whose output is added to the stream.
    """

    reader: str
    writer: str


def find_sublayers(stack: Stack, block: str, model: nn.Module) -> list[Sublayer]:
    """Return the sublayers of one block, in forward order.

    Args:
        stack: describes the parts of the blocks.
        block: path of the block.
        model: the model; a sublayer whose reader or writer it lacks is left out.
    """
    ends = [(attention.query or attention.fused, attention.output) for attention in stack.attentions]
    # The output of shared experts is added to that of the others before the residual stream.
    if not stack.has_experts(model.get_submodule(block)):
        ends += [(feed_forward.inner[0], feed_forward.output) for feed_forward in stack.feed_forward]
    paths = [(f"{block}.{reader}", f"{block}.{writer}") for reader, writer in ends if reader is not None]
    return [Sublayer(*pair) for pair in paths if all(has_module(model, path) for path in pair)]


def paths_to_capture(block: str, parts: Sequence[Sublayer]) -> list[str]:
    """Return the paths of the modules whose activations `find_residual` and `residual_before` read."""
    return [block, *(path for part in parts for path in (part.reader, part.writer))]


def find_residual(capture: ActivationCapture, block: str, parts: Sequence[Sublayer]) -> Residual:
    """Find out from captured activations how a block makes up its residual stream.

    Args:
        capture: captured activations at `paths_to_capture(block, parts)`.
        block: path of the block.
        parts: its sublayers.

    Returns:
        `SUM` if the block's output is its input plus all writers' outputs (pre-LN), `READ` if instead the first
        sublayer reads the block's input directly (post-LN), else `UNKNOWN`.
    """
    block_input, block_output = capture.inputs[block][0], capture.outputs[block][0]
    written = [capture.outputs[part.writer][0].reshape(block_input.shape) for part in parts]
    if _same(sum(written, block_input), block_output):
        return Residual.SUM
    return Residual.READ if parts and _same(capture.inputs[parts[0].reader][0], block_input) else Residual.UNKNOWN


def residual_before(
    capture: ActivationCapture, block: str, parts: Sequence[Sublayer], writer: str, kind: Residual, call: int
) -> Tensor:
    """Return the residual stream that the output of `writer` is added to.

    Args:
        capture: captured activations at `paths_to_capture(block, parts)`.
        block: path of the block.
        parts: its sublayers.
        writer: path of the writer.
        kind: result of `find_residual`; not `UNKNOWN`.
        call: number of the call within the capture.

    Returns:
        The stream, in the shape of the writer's output.
    """
    index = next(i for i, part in enumerate(parts) if part.writer == writer)
    # OPT flattens sequences and tokens into one dimension before its feed-forward.
    shape = capture.outputs[writer][call].shape
    if kind is Residual.READ:
        return capture.inputs[parts[index].reader][call].reshape(shape)
    written = [capture.outputs[part.writer][call].reshape(shape) for part in parts[:index]]
    return sum(written, capture.inputs[block][call].reshape(shape))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= TOLERANCE * b.norm())
