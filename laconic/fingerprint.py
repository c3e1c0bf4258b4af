"""Hashes for the names of cache entries: of laconic's own code, of classes that others define, and of tensors.

A cached result must not outlive the code that computed it. laconic's packages are hashed file by file. A class of a
plug-in, a script or a notebook is hashed with its module and what that imports, so that an edit gives another key.
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
"""Members of a class that Python or `dataclass` makes; they follow from the others."""
CODE = (type, FunctionType, BuiltinFunctionType, ModuleType)
PLAIN = (bool, int, float, complex, str, bytes, type(None))


class _NoSourceError(Exception):
    """The source of a class or function is not to be had."""


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
    """A hash of all Python files in these packages of laconic.

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
    """A hash of the code that defines a class: its package or script, what that imports, and versions.

    Classes of laconic, torch and transformers give "", as their versions are part of every key. For a class of a
    notebook, whose module has no file, its functions and what they refer to are hashed.

    Args:
        kind: any class.

    Returns:
        The hash; None where some of the source is not to be had, so that results of the class must not be cached.

    Example:
        >>> hash_class(Tensor)
        ''
    """
    own = [base for base in kind.__mro__ if not _is_versioned(base.__module__)]
    modules = [sys.modules.get(base.__module__) for base in own]
    try:
        typed_in = [
            text.encode()
            for base, module in zip(own, modules, strict=True)
            if not _file_of(module)
            for text in _source_in_session(base)
        ]
    except _NoSourceError:
        return None
    return _digest([*typed_in, *_source_of(module for module in modules if _file_of(module))]) if own else ""


def hash_classes(kinds: Iterable[type]) -> str | None:
    """One hash of several classes, in any order; None where one of them has none."""
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
    """The files of the packages that `modules` belong to, and of what these import from outside of site-packages."""
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
    """All Python files of the package that a module belongs to; of a module in no package, its own."""
    names = module.__name__.split(".")
    parents = (sys.modules.get(".".join(names[:length])) for length in range(1, len(names) + 1))
    file = Path(next(file for file in map(_file_of, (*parents, module)) if file))
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def _is_installed(module: object) -> bool:
    file = Path(str(_file_of(module)))
    return any(file.is_relative_to(sysconfig.get_path(name)) for name in ("purelib", "platlib"))


@cache
def _version(root: str) -> str:
    """Distribution and version that a package came with; empty where it was not installed."""
    return " ".join(f"{name} {version(name)}" for name in sorted(set(packages_distributions().get(root, ()))))


def _source_in_session(root: type) -> list[str]:
    """The source of a class that was typed into a session, and of everything that it refers to there.

    Raises:
        _NoSourceError: a part has no source.
    """
    texts: list[str] = []
    waiting: list[Any] = [root]
    seen: list[Any] = []
    while waiting:
        part = waiting.pop()
        known = next((number for number, other in enumerate(seen) if part is other), None)
        if known is not None:
            # What occurs again is told by where it occurred first.
            texts.append(f"#{known}\n")
            continue
        seen.append(part)
        text, more = _code_of(part) if isinstance(part, CODE) else _value_of(part)
        texts.append(f"{text}\n")
        waiting += more
    return texts


def _code_of(part: Any) -> tuple[str, Iterable[Any]]:
    """The source of a class, function or module, and what it refers to."""
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
    """The value of a constant, and what it consists of."""
    match part:
        case property():
            return "property", (part.fget, part.fset, part.fdel)
        case staticmethod() | classmethod():
            return "method", (part.__func__,)
        case set() | frozenset():
            return f"{len(part)}", sorted(part, key=lambda one: getattr(one, "__qualname__", repr(one)))
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
