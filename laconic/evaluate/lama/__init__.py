"""LAMA: what a language model knows, asked as sentences with a gap (Petroni et al. 2019)."""

from laconic.evaluate.lama.judge import LAMA_NAMES, Lama, lama_task

__all__ = ["LAMA_NAMES", "Lama", "lama_task"]
