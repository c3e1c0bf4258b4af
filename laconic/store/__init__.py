"""Save and load: the transformers plug-in, folders written whole or not at all, and the way back to a plain model.

Each part is imported when it is asked for: transformers imports the plug-in while it is being imported itself.
"""

from typing import TYPE_CHECKING

from laconic.lazily import lazy

if TYPE_CHECKING:
    from laconic.store.atomic import check_output, check_place
    from laconic.store.attached import attach
    from laconic.store.densify import materialize
    from laconic.store.folder import Beside, file_bytes, save
    from laconic.store.quantizer import LaconicConfig, LaconicQuantizer
    from laconic.store.weightless import skeleton

__all__ = [
    "Beside",
    "LaconicConfig",
    "LaconicQuantizer",
    "attach",
    "check_output",
    "check_place",
    "file_bytes",
    "materialize",
    "save",
    "skeleton",
]

__getattr__ = lazy(
    "laconic.store",
    {
        "Beside": "laconic.store.folder",
        "LaconicConfig": "laconic.store.quantizer",
        "LaconicQuantizer": "laconic.store.quantizer",
        "attach": "laconic.store.attached",
        "check_output": "laconic.store.atomic",
        "check_place": "laconic.store.atomic",
        "file_bytes": "laconic.store.folder",
        "materialize": "laconic.store.densify",
        "save": "laconic.store.folder",
        "skeleton": "laconic.store.weightless",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
