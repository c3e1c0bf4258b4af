"""Save and load models: the quantizer for transformers, atomic output folders, and dense copies of models.

Names are imported at first use, because transformers imports the quantizer while it is being imported itself.

Internal: it may change with any version.
"""

from typing import TYPE_CHECKING

from laconic.imports import lazy

if TYPE_CHECKING:
    from laconic.store.atomic import check_output
    from laconic.store.densify import materialize
    from laconic.store.folder import ExtraFiles, file_bytes, save
    from laconic.store.pretrained import attach, skeleton
    from laconic.store.quantizer import LaconicConfig, LaconicQuantizer

__all__ = [
    "ExtraFiles",
    "LaconicConfig",
    "LaconicQuantizer",
    "attach",
    "check_output",
    "file_bytes",
    "materialize",
    "save",
    "skeleton",
]

__getattr__ = lazy(
    "laconic.store",
    {
        "ExtraFiles": "laconic.store.folder",
        "LaconicConfig": "laconic.store.quantizer",
        "LaconicQuantizer": "laconic.store.quantizer",
        "attach": "laconic.store.pretrained",
        "check_output": "laconic.store.atomic",
        "file_bytes": "laconic.store.folder",
        "materialize": "laconic.store.densify",
        "save": "laconic.store.folder",
        "skeleton": "laconic.store.pretrained",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
