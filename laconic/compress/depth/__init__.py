"""Depth reduction: choose the blocks to drop, fit their replacements, and the step `shorten`."""

from laconic.compress.depth.step import Shorten

__all__ = ["Shorten"]
