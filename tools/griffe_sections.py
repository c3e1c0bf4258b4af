"""An extension of griffe for three habits of the docstrings here.

A section `Example:` is shown as code, like griffe's own `Examples:`. A NamedTuple describes its fields under `Args:`,
which griffe looks for under `Attributes:`. The descriptions of inherited fields are copied from the base class.
"""

import re
from typing import Any

import griffe

from laconic.typed import add_fields


class Sections(griffe.Extension):
    """Rename these sections in each docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring is None:
            return
        text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
        if isinstance(obj, griffe.Class) and any(str(base) == "NamedTuple" for base in obj.bases):
            text = re.sub(r"^( *)Args:$", r"\1Attributes:", text, flags=re.MULTILINE)
        obj.docstring.value = text

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called once, after all modules of the package are loaded."""
        modules = [pkg]
        while modules:
            module = modules.pop()
            modules += module.modules.values()
            for kind in module.classes.values():
                if not kind.is_alias:
                    _inherit_fields(kind)


def _inherit_fields(kind: griffe.Class) -> set[str]:
    """Add the descriptions of inherited fields to the docstring of a class.

    Args:
        kind: the class.

    Returns:
        The names of its fields and of all inherited ones.
    """
    names = {name for name, member in kind.members.items() if member.is_attribute and "property" not in member.labels}
    for base in kind.resolved_bases:
        if isinstance(base, griffe.Class) and base.docstring and kind.docstring:
            inherited = _inherit_fields(base)
            kind.docstring.value = add_fields(kind.docstring.value, base.docstring.value, inherited)
            names |= inherited
    return names
