"""Steps that shrink a model."""

from laconic.compress.heads import ShrinkHeads
from laconic.compress.matrices import Allocation, Compress
from laconic.compress.step import Outcome, Step

STEPS: tuple[type[Step], ...] = (Compress, ShrinkHeads)

__all__ = ["STEPS", "Allocation", "Compress", "Outcome", "ShrinkHeads", "Step"]
