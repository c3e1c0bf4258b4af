"""laconic makes a transformer language model smaller and faster, and says what that cost.

Importing it teaches transformers to load what laconic saved: `from_pretrained` then works on those folders too. What
else it has is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from laconic.lazily import lazy
from laconic.plugin import TABLES, when_imported

if TYPE_CHECKING:
    from laconic.errors import UserError
    from laconic.recipe import compress
    from laconic.store import materialize

__all__ = ["UserError", "compress", "materialize"]

__getattr__ = lazy(
    "laconic", {"UserError": "laconic.errors", "compress": "laconic.recipe", "materialize": "laconic.store"}
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# The function `compress` is called like a package, which Python binds to that name when it is first imported. That is
# here, where it costs nothing, and the name is the function's from then on.
import_module("laconic.compress")
del globals()["compress"]

when_imported(TABLES, lambda: import_module("laconic.store.quantizer"))
