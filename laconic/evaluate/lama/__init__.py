"""LAMA: what a language model knows, asked as sentences with a gap (Petroni et al. 2019)."""

from laconic.evaluate.lama.task import Lama

__all__ = ["Lama"]
