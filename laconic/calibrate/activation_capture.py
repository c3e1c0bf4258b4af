"""What passes through some modules in one run of a model: inputs and outputs, in the order of the calls."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
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
