"""A compressed model for another runtime: written, checked against the model in torch, or not there at all.

Internal: it may change with any version.
"""

from laconic.export.folder import Outcome, check_target, export

__all__ = ["Outcome", "check_target", "export"]
