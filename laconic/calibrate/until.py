"""Runs of a model that end where nothing more is wanted of them: what is behind the last module heard does not run."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Self

from torch import nn


class Ended(Exception):  # noqa: N818 - it ends a run, and is no error
    """Raised within a run of a model by whoever has heard enough."""


class Until(ExitStack):
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
        with suppress(Ended):
            yield
        if self._usual is None and self._calls.keys() == set(self._modules):
            self._usual = self._calls

    def _count(self, module: nn.Module, *_: Any) -> None:
        self._calls[module] += 1
        if self._usual is not None and self._calls >= self._usual:
            raise Ended
