"""Steps that shrink a model."""

from laconic.compress.depth import Shorten
from laconic.compress.heads import ShrinkHeads
from laconic.compress.matrices import Compress
from laconic.compress.scales import AwqScale, SmoothQuant
from laconic.compress.step import Outcome, Step
from laconic.compress.ways import Allocation
from laconic.compress.width import Narrow

SHRINKING: tuple[type[Step], ...] = (Compress, ShrinkHeads, Narrow, Shorten, AwqScale, SmoothQuant)

__all__ = [
    "SHRINKING",
    "Allocation",
    "AwqScale",
    "Compress",
    "Narrow",
    "Outcome",
    "Shorten",
    "ShrinkHeads",
    "SmoothQuant",
    "Step",
]
