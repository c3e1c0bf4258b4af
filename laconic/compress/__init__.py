"""Steps that shrink a model. Each is imported at its first use, to keep `import laconic` fast."""

from typing import TYPE_CHECKING

from laconic.imports import lazy

if TYPE_CHECKING:
    from laconic.compress.allocators import Allocation
    from laconic.compress.depth import Shorten
    from laconic.compress.heads import ShrinkHeads
    from laconic.compress.matrices import Compress
    from laconic.compress.scales import AwqScale, SmoothQuant
    from laconic.compress.shrinking import SHRINKING
    from laconic.compress.step import Outcome, Step
    from laconic.compress.width import Narrow

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

__getattr__ = lazy(
    "laconic.compress",
    {
        "SHRINKING": "laconic.compress.shrinking",
        "Allocation": "laconic.compress.allocators",
        "AwqScale": "laconic.compress.scales",
        "Compress": "laconic.compress.matrices",
        "Narrow": "laconic.compress.width",
        "Outcome": "laconic.compress.step",
        "Shorten": "laconic.compress.depth",
        "ShrinkHeads": "laconic.compress.heads",
        "SmoothQuant": "laconic.compress.scales",
        "Step": "laconic.compress.step",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
