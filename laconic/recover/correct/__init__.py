"""Correct a compressed model in closed form, without training, so that it is closer to the original."""

from laconic.recover.correct.step import Correct

__all__ = ["Correct"]
