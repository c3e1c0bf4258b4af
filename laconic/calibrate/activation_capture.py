"""What passes through some modules in one run of a model: inputs and outputs, in the order of the calls.

Runs of a model that end where nothing more is wanted of them: what is behind the last module heard does not run.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class ActivationCapture(ExitStack):
    """Within the context the modules of `model` at `paths` are listened to; one entry for every call."""

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
        """Forget what has passed."""
        for heard in (*self.inputs.values(), *self.outputs.values()):
            heard.clear()

    def _listen(self, path: str, module: nn.Module) -> Iterator[RemovableHandle]:
        # Apart, because a run may end within the module.
        def on_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.inputs[path].append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

        def on_return(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.outputs[path].append(output[0] if isinstance(output, (tuple, list)) else output)

        yield module.register_forward_pre_hook(on_call, with_kwargs=True)
        yield module.register_forward_hook(on_return)


class RunEnded(Exception):  # noqa: N818 - it ends a run, and is no error
    """Raised within a run of a model by whoever has heard enough."""


class RunUntil(ExitStack):
    """Within the context each `run` ends once all of `modules` were called, or with `returned` once all of them have
    returned; as often as in the first run, which goes to its end.

    A run in which one of them is not called, as an expert without tokens, goes to its end too. What else listens to
    the modules must have been hooked before.
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
        """One run, which may end here."""
        self._calls = Counter()
        with suppress(RunEnded):
            yield
        if self._usual is None and self._calls.keys() == set(self._modules):
            self._usual = self._calls

    def _count(self, module: nn.Module, *_: Any) -> None:
        self._calls[module] += 1
        if self._usual is not None and self._calls >= self._usual:
            raise RunEnded
