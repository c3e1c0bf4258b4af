"""Public names with their signatures, one a line; `python -m tests.public_api` writes them to public_api.txt."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("public_api.txt")
PACKAGES = ("laconic", "laconic.methods", "laconic.compress", "laconic.recover", "laconic.formats", "laconic.testing")


def text() -> str:
    """The content of the file."""
    packages = [name for name in PACKAGES if find_spec(name) is not None]
    return "".join(f"{line}\n" for name in packages for line in lines(name))


def lines(package: str) -> Iterator[str]:
    """The public names of a package; of results and of base classes the members too."""
    module = import_module(package)
    for name in sorted(module.__all__):
        value = getattr(module, name)
        yield f"{package}.{name}{signature(value)}"
        if inspect.isclass(value) and (package == "laconic" or inspect.isabstract(value)):
            yield from sorted(f"{package}.{name}.{line}" for line in members(value))


def members(kind: type) -> Iterator[str]:
    """The members that a class of laconic adds, base classes included."""
    own = {
        name: value
        for base in kind.__mro__
        if base.__module__.startswith("laconic")
        for name, value in vars(base).items()
    }
    for name in own:
        if not name.startswith("_"):
            member = inspect.getattr_static(kind, name)
            yield name if isinstance(member, property) else f"{name}{signature(getattr(kind, name))}"


def signature(value: Any) -> str:
    """Names, kinds and defaults of the parameters; empty for what cannot be called."""
    if not callable(value) or (inspect.isclass(value) and issubclass(value, BaseException)):
        return ""
    # A metaclass that checks arguments hides those of the class.
    own = value.__init__ if inspect.isclass(value) and value.__init__ is not object.__init__ else value
    found = inspect.signature(own)
    plain = [part.replace(annotation=part.empty) for part in found.parameters.values()][own is not value :]
    parameters = [part if part.default is part.empty else part.replace(default=Shown(part.default)) for part in plain]
    return str(found.replace(parameters=parameters, return_annotation=found.empty))


class Shown:
    """A default as the file shows it: a function by its name alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return getattr(self.value, "__name__", None) or repr(self.value)


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
