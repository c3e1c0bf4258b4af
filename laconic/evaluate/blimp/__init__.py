"""BLiMP (Warstadt et al. 2020): does a language model give the acceptable sentence of a pair the higher probability?"""

from laconic.evaluate.blimp.task import Blimp

__all__ = ["Blimp"]
