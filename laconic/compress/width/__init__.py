"""Width pruning: remove attention heads and feed-forward channels."""

from laconic.compress.width.narrow import Narrow

__all__ = ["Narrow"]
