"""Steps that shrink a model."""

from laconic.compress.depth import Shorten
from laconic.compress.heads import ShrinkHeads
from laconic.compress.matrices import Compress
from laconic.compress.step import Outcome, Step
from laconic.compress.ways import Allocation
from laconic.compress.width import Narrow

STEPS: tuple[type[Step], ...] = (Compress, ShrinkHeads, Narrow, Shorten)

__all__ = ["STEPS", "Allocation", "Compress", "Narrow", "Outcome", "Shorten", "ShrinkHeads", "Step"]
