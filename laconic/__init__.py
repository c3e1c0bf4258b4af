"""laconic makes a transformer language model smaller and faster, and measures the loss of quality.

Each function of this package corresponds to a command of the command line. It accepts a loaded model or a folder.
The public API is this package, `laconic.methods`, the steps in `laconic.compress` and `laconic.recover`,
`laconic.formats` and `laconic.testing`. Everything else may change with any version.

`import laconic` registers a quantizer with transformers, so that `from_pretrained` loads the folders that laconic
saved. All other modules are imported at first use.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from laconic.imports import TABLES, installed_version, lazy, when_imported

if TYPE_CHECKING:
    from laconic.api.advise import AdviseResult, advise
    from laconic.api.compress import compress, run
    from laconic.api.compressed import CompressResult
    from laconic.api.estimated import CompressEstimate
    from laconic.api.evaluate import EvaluateResult, evaluate
    from laconic.api.export import ExportResult, export
    from laconic.api.inspect import InspectResult, inspect
    from laconic.api.load import LoadResult, load, materialize
    from laconic.api.study import StudyPlan, StudyResult, study
    from laconic.errors import UserError

    __version__: str
    """The version of the installed package."""

__all__ = [
    "AdviseResult",
    "CompressEstimate",
    "CompressResult",
    "EvaluateResult",
    "ExportResult",
    "InspectResult",
    "LoadResult",
    "StudyPlan",
    "StudyResult",
    "UserError",
    "__version__",
    "advise",
    "compress",
    "evaluate",
    "export",
    "inspect",
    "load",
    "materialize",
    "run",
    "study",
]

_HOMES = {
    "UserError": "laconic.errors",
    "AdviseResult": "laconic.api.advise",
    "CompressEstimate": "laconic.api.estimated",
    "CompressResult": "laconic.api.compressed",
    "EvaluateResult": "laconic.api.evaluate",
    "ExportResult": "laconic.api.export",
    "InspectResult": "laconic.api.inspect",
    "LoadResult": "laconic.api.load",
    "StudyPlan": "laconic.api.study",
    "StudyResult": "laconic.api.study",
    "advise": "laconic.api.advise",
    "compress": "laconic.api.compress",
    "evaluate": "laconic.api.evaluate",
    "export": "laconic.api.export",
    "inspect": "laconic.api.inspect",
    "load": "laconic.api.load",
    "materialize": "laconic.api.load",
    "run": "laconic.api.compress",
    "study": "laconic.api.study",
}
_import_name = lazy("laconic", _HOMES)


def __getattr__(name: str) -> Any:
    return installed_version() if name == "__version__" else _import_name(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The type of this module. It keeps `laconic.compress` the function.

    Without it, Python would replace the function by the subpackage of the same name when the subpackage is imported.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
when_imported(TABLES, lambda: import_module("laconic.store.quantizer"))
