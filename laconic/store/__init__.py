"""Save and load: the transformers plug-in, folders written whole or not at all, and the way back to a plain model."""

from laconic.store.atomic import check_output, check_place
from laconic.store.folder import Beside, file_bytes, save
from laconic.store.materialize import materialize
from laconic.store.quantizer import LaconicConfig, LaconicQuantizer, attach, register
from laconic.store.skeleton import skeleton

__all__ = [
    "Beside",
    "LaconicConfig",
    "LaconicQuantizer",
    "attach",
    "check_output",
    "check_place",
    "file_bytes",
    "materialize",
    "register",
    "save",
    "skeleton",
]
