"""Export a compressed model to another runtime. The exported model is compared with torch before it is kept.

Internal: it may change with any version.
"""

from laconic.export.folder import check_target, export
from laconic.export.target import ExportOutcome

__all__ = ["ExportOutcome", "check_target", "export"]
