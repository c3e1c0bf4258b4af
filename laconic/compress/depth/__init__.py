"""Fewer blocks: which ones go, what stands in their place, and the step that does it."""

from laconic.compress.depth.step import Shorten

__all__ = ["Shorten"]
