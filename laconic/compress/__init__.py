"""Steps that shrink a model. Each is imported at its first use, to keep `import laconic` fast."""

from typing import TYPE_CHECKING, Any

from laconic.imports import lazy

if TYPE_CHECKING:
    from laconic.compress.allocators import Allocation
    from laconic.compress.depth import Shorten
    from laconic.compress.heads import ShrinkHeads
    from laconic.compress.matrices import Compress
    from laconic.compress.scales import AwqScale, SmoothQuant
    from laconic.compress.step import Outcome, Step

    SHRINKING: tuple[type[Step], ...]
    """All steps of this package, in the order in which the command line lists them."""
    from laconic.compress.narrow import Narrow

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

_import = lazy(
    "laconic.compress",
    {
        "Allocation": "laconic.compress.allocators",
        "AwqScale": "laconic.compress.scales",
        "Compress": "laconic.compress.matrices",
        "Narrow": "laconic.compress.narrow",
        "Outcome": "laconic.compress.step",
        "Shorten": "laconic.compress.depth",
        "ShrinkHeads": "laconic.compress.heads",
        "SmoothQuant": "laconic.compress.scales",
        "Step": "laconic.compress.step",
    },
)


def __getattr__(name: str) -> Any:
    if name == "SHRINKING":
        return tuple(map(_import, ("Compress", "ShrinkHeads", "Narrow", "Shorten", "AwqScale", "SmoothQuant")))
    return _import(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
