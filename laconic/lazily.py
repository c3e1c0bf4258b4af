"""Names of a package that are imported when they are asked for (PEP 562), so that the package itself costs nothing.

The package names them again for type checkers, under `TYPE_CHECKING`.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`.

    homes: by name, the module that defines it. A module of the package is found by its own name.

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
