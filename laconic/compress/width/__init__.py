"""Narrower models: heads and channels taken out."""

from laconic.compress.width.narrow import Narrow

__all__ = ["Narrow"]
