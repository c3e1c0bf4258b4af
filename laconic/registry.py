"""Registries of methods, steps, architectures and tasks: those of laconic itself, and those of installed plug-ins.

A plug-in is a distribution with entry points in one of the groups below. Entry points are read from the metadata at
each look-up, and only the requested object is imported. A plug-in cannot replace a built-in.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, Literal, TypeVar, cast

from laconic.errors import DISTRIBUTION, UserError, reason_of, unknown

Group = Literal["laconic.methods", "laconic.steps", "laconic.architectures", "laconic.tasks"]
SHARED: dict[Group, tuple[Group, ...]] = {
    "laconic.methods": ("laconic.methods", "laconic.steps"),
    "laconic.steps": ("laconic.methods", "laconic.steps"),
    "laconic.architectures": ("laconic.architectures",),
    "laconic.tasks": ("laconic.tasks",),
}
"""For each group, the groups that share its names. Methods and steps do, because `--method` accepts both."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class Plugin:
    """One entry point of an installed distribution.

    Args:
        group: the group of entry points, such as `laconic.methods`.
        entry_point: the name, and the object as `module:attribute`.
    """

    group: Group
    entry_point: EntryPoint

    @property
    def name(self) -> str:
        """The name by which users refer to it."""
        return self.entry_point.name

    @property
    def distribution(self) -> str:
        """Name and version of the distribution, as pip shows them."""
        found = self.entry_point.dist
        return "a distribution without metadata" if found is None else f"{found.name} {found.version}"

    def __str__(self) -> str:
        return f"the entry point '{self.name} = {self.entry_point.value}' ({self.group}) of {self.distribution}"

    def load(self) -> object:
        """Import the object.

        Raises:
            UserError: the import raises any exception; the message names the distribution and the entry point.
        """
        try:
            return self.entry_point.load()
        except Exception as error:  # a plug-in may raise any exception
            reason = f"{type(error).__name__}: {reason_of(error).removeprefix(f'{type(error).__name__}: ')}"
            raise self.error(f"cannot be imported ({reason})", "install a version that works") from error

    def error(self, what: str, remedy: str) -> UserError:
        """A UserError about this entry point; `what` names the problem. To uninstall is always a second remedy."""
        name = self.distribution.partition(" ")[0]
        return UserError(f"{str(self)[0].upper()}{str(self)[1:]} {what}; {remedy}, or uninstall '{name}'.")


def plugins(*groups: Group) -> tuple[Plugin, ...]:
    """The entry points of some groups, sorted by group, name and distribution. Nothing is imported.

    Args:
        groups: the groups, in the order of the result.

    Example:
        >>> all(plugin.group == "laconic.methods" for plugin in plugins("laconic.methods"))
        True
    """
    found = _scan(tuple(map(_state, sys.path)))
    return tuple(plugin for group in groups for plugin in found if plugin.group == group)


def _state(path: str) -> tuple[str, int]:
    """The folder with its modification time, which changes when a distribution is installed or removed."""
    try:
        return path, os.stat(path or ".").st_mtime_ns
    except OSError:
        return path, 0


@lru_cache(maxsize=1)
def _scan(state: tuple[tuple[str, int], ...]) -> tuple[Plugin, ...]:
    found = [Plugin(group, point) for group in SHARED for point in entry_points(group=group)]
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.distribution)))


class Registry(Generic[Part]):
    """All objects of one kind by name: built-ins, and objects of the plug-ins that are installed at each look-up.

    Args:
        group: the group of entry points.
        noun: the word for one object in error messages, such as "method".
        builtins: the objects of laconic itself, by name.
        check: returns a description of the problem with the object of an entry point, such as "is no subclass of
            Method", or None if the object is valid. Its arguments are the object and the name.
        reserved: returns further names that a plug-in must not use.

    Example:
        >>> registry = Registry("laconic.tasks", "number", {"one": 1}, check=lambda found, name: None)
        >>> registry.get("one"), registry.find("two")
        (1, None)
    """

    def __init__(
        self,
        group: Group,
        noun: str,
        builtins: Mapping[str, Part],
        check: Callable[[object, str], str | None],
        reserved: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._group: Group = group
        self._noun, self._check = noun, check
        self._builtins = dict(builtins)
        self._reserved = reserved

    def names(self) -> list[str]:
        """All names: built-ins in their order, then plug-ins, including those that cannot be imported."""
        added = (plugin.name for plugin in plugins(self._group))
        return list(dict.fromkeys((*self._builtins, *added)))

    def find(self, name: str) -> Part | None:
        """The object with this name; None if it does not exist.

        Raises:
            UserError: a plug-in has this name and cannot be used: it fails to import, its object is not valid, or the
                name is taken.
        """
        named = [plugin for plugin in plugins(*SHARED[self._group]) if plugin.name == name]
        if named and (name in self._builtins or name in self._reserved()):
            raise named[0].error(f"has the name of something that {DISTRIBUTION} defines", "give it another name")
        if len(named) > 1:
            raise named[0].error(f"has the same name as {named[1]}", "keep one of the two")
        if name in self._builtins:
            return self._builtins[name]
        return self._checked(named[0]) if named and named[0].group == self._group else None

    def get(self, name: str) -> Part:
        """The object with this name, which must exist.

        Raises:
            UserError: as in `find`; or the name does not exist, and the message suggests the most similar name.
        """
        found = self.find(name)
        if found is None:
            raise unknown(self._noun, name, self.names())
        return found

    def all(self) -> dict[str, Part]:
        """All usable objects by name. Plug-ins that cannot be used are left out; `added` returns their errors."""
        return self._builtins | {plugin.name: part for plugin, part in self.added()[0].items()}

    def added(self) -> tuple[dict[Plugin, Part], dict[Plugin, UserError]]:
        """The objects of usable plug-ins, and the errors of the other plug-ins. This imports all of them."""
        found: dict[Plugin, Part] = {}
        failures: dict[Plugin, UserError] = {}
        for plugin in plugins(self._group):
            try:
                part = self.find(plugin.name)
                if part is not None:
                    found[plugin] = part
            except UserError as error:
                failures[plugin] = error
        return found, failures

    def _checked(self, plugin: Plugin) -> Part:
        found = plugin.load()
        mistake = self._check(found, plugin.name)
        if mistake is not None:
            raise plugin.error(mistake, "correct the plug-in")
        # `_check` has found that it is a part.
        return cast(Part, found)


def check_named_class(kind: type, found: object, name: str) -> str | None:
    """Check the object of an entry point that must be a class with an attribute `name`.

    Args:
        kind: the required base class.
        found: the imported object.
        name: the name of the entry point, which the class must have as its `name`.

    Returns:
        A description of the problem; None if the object is valid.

    Example:
        >>> check_named_class(int, 3, "three")
        'is no subclass of int'
    """
    if not isinstance(found, type) or not issubclass(found, kind) or getattr(found, "__abstractmethods__", None):
        return f"is no subclass of {kind.__name__}{' that can be used' if isinstance(found, type) else ''}"
    own = getattr(found, "name", None)
    return None if own == name else f"names a class with the name {own!r}"
