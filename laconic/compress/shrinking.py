"""The steps that shrink a model, in the order in which they are listed."""

from laconic.compress.depth import Shorten
from laconic.compress.heads import ShrinkHeads
from laconic.compress.matrices import Compress
from laconic.compress.scales import AwqScale, SmoothQuant
from laconic.compress.step import Step
from laconic.compress.width import Narrow

SHRINKING: tuple[type[Step], ...] = (Compress, ShrinkHeads, Narrow, Shorten, AwqScale, SmoothQuant)
"""All steps of this package, in the order in which the command line lists them."""
