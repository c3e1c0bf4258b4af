"""BLiMP: whether a language model finds the acceptable sentence of a pair more probable (Warstadt et al. 2020)."""

from laconic.evaluate.blimp.judge import Blimp, blimp_task

__all__ = ["Blimp", "blimp_task"]
