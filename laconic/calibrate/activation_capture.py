"""Capture the inputs and outputs of modules while a model runs, and end a run when nothing more is needed."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


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
            for handle in self._listen(path, module):
                self.callback(handle.remove)
        return self

    def clear(self) -> None:
        """Remove all captured tensors."""
        for heard in (*self.inputs.values(), *self.outputs.values()):
            heard.clear()

    def _listen(self, path: str, module: nn.Module) -> Iterator[RemovableHandle]:
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
