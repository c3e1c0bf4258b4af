"""Methods, steps, architectures and tasks by name: laconic's own, and those of installed plug-ins.

A plug-in is a distribution with entry points in one of the groups below. Their names are read from its metadata each
time that a name is looked up, and only what is used is imported. Built-ins come first and cannot be replaced.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, Literal, TypeVar

from laconic.errors import DISTRIBUTION, UserError, reason_of, unknown

Group = Literal["laconic.methods", "laconic.steps", "laconic.architectures", "laconic.tasks"]
SHARED: dict[Group, tuple[Group, ...]] = {
    "laconic.methods": ("laconic.methods", "laconic.steps"),
    "laconic.steps": ("laconic.methods", "laconic.steps"),
    "laconic.architectures": ("laconic.architectures",),
    "laconic.tasks": ("laconic.tasks",),
}
"""The groups whose names must differ from those of a group: `--method` takes methods and steps alike."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class Plugin:
    """One entry point of an installed distribution.

    Args:
        group: what it adds.
        entry_point: its name, and the object that it names as `module:attribute`.
    """

    group: Group
    entry_point: EntryPoint

    @property
    def name(self) -> str:
        """The name that users look it up by."""
        return self.entry_point.name

    @property
    def distribution(self) -> str:
        """Name and version of the distribution, as pip knows it."""
        found = self.entry_point.dist
        return "a distribution without metadata" if found is None else f"{found.name} {found.version}"

    def __str__(self) -> str:
        return f"the entry point '{self.name} = {self.entry_point.value}' ({self.group}) of {self.distribution}"

    def load(self) -> object:
        """Import the object.

        Raises:
            UserError: that fails, for whatever reason; the sentence names the distribution and the entry point.
        """
        try:
            return self.entry_point.load()
        except Exception as error:  # a stranger's module may raise anything
            reason = f"{type(error).__name__}: {reason_of(error).removeprefix(f'{type(error).__name__}: ')}"
            raise self.error(f"cannot be imported ({reason})", "install a version that works") from error

    def error(self, what: str, remedy: str) -> UserError:
        """One sentence about this entry point: `what` is wrong with it, and the remedy beside removing it."""
        name = self.distribution.partition(" ")[0]
        return UserError(f"{str(self)[0].upper()}{str(self)[1:]} {what}; {remedy}, or uninstall '{name}'.")


def plugins(*groups: Group) -> tuple[Plugin, ...]:
    """The entry points of some groups, by group, name and distribution; nothing of them is imported.

    Args:
        groups: which; in this order.

    Example:
        >>> all(plugin.group == "laconic.methods" for plugin in plugins("laconic.methods"))
        True
    """
    found = _scan(tuple(map(_state, sys.path)))
    return tuple(plugin for group in groups for plugin in found if plugin.group == group)


def _state(path: str) -> tuple[str, int]:
    """Changes when something is installed into the folder or removed."""
    try:
        return path, os.stat(path or ".").st_mtime_ns
    except OSError:
        return path, 0


@lru_cache(maxsize=1)
def _scan(state: tuple[tuple[str, int], ...]) -> tuple[Plugin, ...]:
    found = [Plugin(group, point) for group in SHARED for point in entry_points(group=group)]
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.distribution)))


class Registry(Generic[Part]):
    """What laconic knows of one kind by name: built-ins, and what plug-ins add at the moment of the question.

    Args:
        group: the group of entry points.
        noun: what one is called in errors.
        builtins: laconic's own by name.
        check: says what is wrong with the object of an entry point, "is no subclass of Method"; None where it is right.
        reserved: gives further names that no plug-in may have.

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
        """All names: built-ins in their order, then those of plug-ins, whether these work or not."""
        added = (plugin.name for plugin in plugins(self._group))
        return list(dict.fromkeys((*self._builtins, *added)))

    def find(self, name: str) -> Part | None:
        """What has this name; None where there is nothing.

        Raises:
            UserError: an entry point has this name and cannot be used: it fails to import, is of another kind or calls
                itself otherwise, or something else has the name already.
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
        """As `find`, where there must be something.

        Raises:
            UserError: as `find`, or there is nothing of this name; the nearest one is suggested.
        """
        found = self.find(name)
        if found is None:
            raise unknown(self._noun, name, self.names())
        return found

    def all(self) -> dict[str, Part]:
        """Everything that works, by name; plug-ins that do not are left out, and `failures` has their errors."""
        return self._builtins | {plugin.name: part for plugin, part in self.added()[0].items()}

    def added(self) -> tuple[dict[Plugin, Part], dict[Plugin, UserError]]:
        """The plug-ins that work, and the errors of those that do not; all of them are imported."""
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
            raise plugin.error(mistake, "mend the plug-in")
        return found  # type: ignore[return-value]


def check_named_class(kind: type, found: object, name: str) -> str | None:
    """What is wrong with the object of an entry point that must be a class with a `name`; None where it is right.

    Args:
        kind: the base class that it must have.
        found: what was imported.
        name: the name of the entry point.

    Example:
        >>> check_named_class(int, 3, "three")
        'is no subclass of int'
    """
    if not isinstance(found, type) or not issubclass(found, kind) or getattr(found, "__abstractmethods__", None):
        return f"is no subclass of {kind.__name__}{' that can be used' if isinstance(found, type) else ''}"
    own = getattr(found, "name", None)
    return None if own == name else f"names a class that calls itself {own!r}"
