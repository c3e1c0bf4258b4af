"""An extension of griffe for two habits of the docstrings here.

A section `Example:` is shown as code, like griffe's own `Examples:`. A NamedTuple describes its fields under `Args:`,
which griffe looks for under `Attributes:`.
"""

import re
from typing import Any

import griffe


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
