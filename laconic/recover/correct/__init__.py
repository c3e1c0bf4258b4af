"""What is left of a model brought nearer to the original in closed form, without training."""

from laconic.recover.correct.step import Correct

__all__ = ["Correct"]
