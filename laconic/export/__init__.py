"""Export a compressed model to another runtime. The exported model is compared with torch before it is kept.

Internal: it may change with any version.
"""

from laconic.export.folder import ExportOutcome, check_target, export

__all__ = ["ExportOutcome", "check_target", "export"]
