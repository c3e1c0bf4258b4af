"""LAMA (Petroni et al. 2019): test the factual knowledge of a language model by sentences with a gap."""

from laconic.evaluate.lama.task import Lama

__all__ = ["Lama"]
