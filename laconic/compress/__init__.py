"""Steps that shrink a model."""

from laconic.compress.matrices import Allocation, Compress
from laconic.compress.step import Outcome, Step

STEPS: tuple[type[Step], ...] = (Compress,)

__all__ = ["STEPS", "Allocation", "Compress", "Outcome", "Step"]
