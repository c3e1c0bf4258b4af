"""Lazy imports: names of a package (PEP 562), the quantizer of laconic, and its version.

A package imports its lazy names also under `TYPE_CHECKING`, for type checkers. The quantizer is registered when
transformers imports its own quantizers. These take longer to import than torch, and a program that loads no model does
not need them.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from laconic.errors import DISTRIBUTION


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a `__getattr__` for a package, which imports a name at its first use.

    Args:
        package: the name of the package. Its modules are found as attributes too.
        homes: the module that defines each name.

    >>> lazy("laconic", {"UserError": "laconic.errors"})("UserError").__name__
    'UserError'
    """

    def get(name: str) -> Any:
        if name in homes:
            return getattr(import_module(homes[name]), name)
        if not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get


def installed_version() -> str:
    """The version of laconic, from the metadata of its distribution; `0+source` if the source is used uninstalled."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 (`import laconic` stays light)

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0+source"


QUANT_METHOD = "laconic"
"""The value of `quantization_config.quant_method` in the config.json of models that laconic saved."""
TABLES = "transformers.quantizers.auto"


def when_imported(module: str, then: Callable[[], object]) -> None:
    """Call `then` right after `module` is imported; at once if it is imported already."""
    if module in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Finder(module, then))


class _Finder(MetaPathFinder):
    """Delegates to the other finders, and wraps the loader of `module`."""

    def __init__(self, module: str, then: Callable[[], object]) -> None:
        self._module = module
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._then)
        return spec


class _Loader(Loader):
    """Runs another loader, and then a callback."""

    def __init__(self, loader: Loader, then: Callable[[], object]) -> None:
        self._loader = loader
        self._then = then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module gets its original loader, for code that reads `__loader__`, such as `inspect`.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then()
