"""Hashes for the keys of cache entries: of the code of laconic, of classes from other code, and of tensors.

A cached result must not be reused after the code that computed it has changed. For laconic itself, all files of a
package are hashed. For a class of a plug-in, a script or a notebook, its module and the modules that it imports are
hashed.
"""

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

VERSIONED = {"laconic", "torch", "transformers"}
"""Packages whose code or version is part of every key already."""
NOT_WRITTEN = {
    *("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__"),
    *("__dict__", "__weakref__", "__module__", "__doc__", "__abstractmethods__", "_abc_impl", "__parameters__"),
    *("__annotations__", "__annotate_func__", "__annotations_cache__", "__orig_bases__", "__match_args__"),
    *("__dataclass_params__", "__dataclass_fields__", "__static_attributes__", "__firstlineno__"),
}
"""Members of a class that Python or `dataclass` generates. They are not hashed, as they follow from other members."""
CODE = (type, FunctionType, BuiltinFunctionType, ModuleType)
PLAIN = (bool, int, float, complex, str, bytes, type(None))


class _NoSourceError(Exception):
    """The source of a class or function is not available."""


class Hash(Protocol):
    """A hash object of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""


def hash_tensors(hashed: Hash, tensors: Mapping[str, Tensor]) -> None:
    """Add names, types, shapes and values of `tensors` to a hash, in the order of their names."""
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


@cache
def hash_packages(*packages: str) -> str:
    """A hash of all Python files in some packages of laconic.

    Args:
        packages: names of folders in `laconic/`.

    Example:
        >>> len(hash_packages("formats", "numerics"))
        32
    """
    root = Path(__file__).parent
    return _digest(path.read_bytes() for package in packages for path in sorted((root / package).rglob("*.py")))


@cache
def hash_class(kind: type) -> str | None:
    """A hash of the code that defines a class: its package or script, the modules that it imports, and versions.

    For a class that was defined in a notebook, its functions and the objects that they refer to are hashed, because
    its module has no file.

    Args:
        kind: any class.

    Returns:
        The hash. It is "" for classes of laconic, torch and transformers, whose versions are part of every key. It is
        None if a part of the source is not available; results of the class must not be cached then.

    Example:
        >>> hash_class(Tensor)
        ''
    """
    own = [base for base in kind.__mro__ if not _is_versioned(base.__module__)]
    modules = [sys.modules.get(base.__module__) for base in own]
    try:
        session_sources = [
            text.encode()
            for base, module in zip(own, modules, strict=True)
            if not _file_of(module)
            for text in _source_in_session(base)
        ]
    except _NoSourceError:
        return None
    return _digest([*session_sources, *_source_of(module for module in modules if _file_of(module))]) if own else ""


def hash_classes(kinds: Iterable[type]) -> str | None:
    """One hash for several classes, independent of their order; None if `hash_class` gives None for one of them."""
    hashes = {f"{kind.__module__}.{kind.__qualname__}": hash_class(kind) for kind in kinds}
    if None in hashes.values():
        return None
    return _digest(f"{name} {value}".encode() for name, value in sorted(hashes.items()) if value)


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _is_versioned(module: str) -> bool:
    root = module.partition(".")[0]
    return root in VERSIONED or root in sys.stdlib_module_names


def _source_of(modules: Iterable[Any]) -> Iterator[bytes]:
    """The contents of all files of the packages of `modules`, and of modules outside site-packages that they import."""
    waiting, seen = list(modules), set[str]()
    while waiting:
        module = waiting.pop()
        if module.__name__ in seen:
            continue
        seen.add(module.__name__)
        root = module.__name__.partition(".")[0]
        if f"{root}." not in seen:
            seen.add(f"{root}.")
            yield f"{root} {_version(root)}".encode()
            yield from (path.read_bytes() for path in _files(module))
        for name in sorted({owner for value in vars(module).values() if (owner := _module_of(value))}):
            other, other_root = sys.modules.get(name), name.partition(".")[0]
            if _is_versioned(name) or not _file_of(other):
                continue
            if other_root == root or not _is_installed(other):
                waiting.append(other)
            elif f"{other_root}." not in seen:
                seen.add(f"{other_root}.")
                yield f"{other_root} {_version(other_root)}".encode()


def _module_of(value: object) -> str | None:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return name if isinstance(name, str) else None


def _file_of(module: object) -> str | None:
    return getattr(module, "__file__", None)


def _files(module: Any) -> list[Path]:
    """All Python files of the package that contains a module; only its own file if it is in no package."""
    names = module.__name__.split(".")
    parents = (sys.modules.get(".".join(names[:length])) for length in range(1, len(names) + 1))
    file = Path(next(file for file in map(_file_of, (*parents, module)) if file))
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def _is_installed(module: object) -> bool:
    file = Path(str(_file_of(module)))
    return any(file.is_relative_to(sysconfig.get_path(name)) for name in ("purelib", "platlib"))


@cache
def _version(root: str) -> str:
    """The name and version of the distribution that contains a package; "" if it is not installed."""
    return " ".join(f"{name} {version(name)}" for name in sorted(set(packages_distributions().get(root, ()))))


def _source_in_session(root: type) -> list[str]:
    """The source of a class that was defined in an interactive session, and of all objects that it refers to there.

    Raises:
        _NoSourceError: a part has no source.
    """
    texts: list[str] = []
    waiting: list[Any] = [root]
    seen: list[Any] = []
    while waiting:
        part = waiting.pop()
        index = next((number for number, other in enumerate(seen) if part is other), None)
        if index is not None:
            # A repeated object is represented by the index of its first occurrence.
            texts.append(f"#{index}\n")
            continue
        seen.append(part)
        text, more = _code_of(part) if isinstance(part, CODE) else _value_of(part)
        texts.append(f"{text}\n")
        waiting += more
    return texts


def _code_of(part: Any) -> tuple[str, Iterable[Any]]:
    """The source of a class, function or module, and the objects that it refers to."""
    module = str(_module_of(part))
    if _is_versioned(module) or isinstance(part, BuiltinFunctionType):
        return f"{module}.{getattr(part, '__qualname__', '')}", ()
    if isinstance(part, ModuleType) or _file_of(sys.modules.get(module)):
        return _digest(_source_of([sys.modules[module]])), ()
    if isinstance(part, type):
        members = {name: value for name, value in vars(part).items() if name not in NOT_WRITTEN}
        return f"{part.__qualname__} {list(members)}", (*part.__bases__, *members.values())
    try:
        return inspect.getsource(part), _referred_to(part)
    except (OSError, TypeError) as error:
        raise _NoSourceError from error


def _value_of(part: Any) -> tuple[str, Iterable[Any]]:
    """The value of a constant as text, and the objects that it contains."""
    match part:
        case property():
            return "property", (part.fget, part.fset, part.fdel)
        case staticmethod() | classmethod():
            return "method", (part.__func__,)
        case set() | frozenset():
            return f"{len(part)}", sorted(part, key=lambda item: getattr(item, "__qualname__", repr(item)))
        case tuple() | list():
            return f"{len(part)}", part
        case dict():
            return f"{len(part)}", (*part.keys(), *part.values())
        case _ if isinstance(part, PLAIN) or type(part).__module__ == "typing":
            return repr(part), ()
    raise _NoSourceError


def _referred_to(function: FunctionType) -> list[Any]:
    """The values of the global and enclosing names in a function, and its defaults."""
    names = set[str]()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    found = [function.__globals__[name] for name in sorted(names) if name in function.__globals__]
    return [
        *found,
        *(cell.cell_contents for cell in function.__closure__ or ()),
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
    ]
