"""What passes through some modules in one run of a model: inputs and outputs, in the order of the calls."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Self

from torch import Tensor, nn


class Tap(ExitStack):
    """Within the context the modules of `model` at `paths` are listened to; one entry for every call."""

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        super().__init__()
        self._modules = {path: model.get_submodule(path) for path in paths}
        self.inputs: dict[str, list[Tensor]] = {path: [] for path in self._modules}
        self.outputs: dict[str, list[Tensor]] = {path: [] for path in self._modules}

    def __enter__(self) -> Self:
        for path, module in self._modules.items():
            self.callback(self._listen(path, module).remove)
        return self

    def _listen(self, path: str, module: nn.Module) -> Any:
        def on_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.inputs[path].append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
            self.outputs[path].append(output[0] if isinstance(output, tuple) else output)

        return module.register_forward_hook(on_call, with_kwargs=True)
