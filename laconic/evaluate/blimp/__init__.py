"""BLiMP: whether a language model finds the acceptable sentence of a pair more probable (Warstadt et al. 2020)."""

from laconic.evaluate.blimp.task import Blimp

__all__ = ["Blimp"]
