"""Steps that shrink a model."""

from laconic.compress.heads import ShrinkHeads
from laconic.compress.matrices import Compress
from laconic.compress.step import Outcome, Step
from laconic.compress.ways import Allocation

STEPS: tuple[type[Step], ...] = (Compress, ShrinkHeads)

__all__ = ["STEPS", "Allocation", "Compress", "Outcome", "ShrinkHeads", "Step"]
