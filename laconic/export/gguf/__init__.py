"""Write a model as a GGUF file, the format of llama.cpp, with its tokenizer."""

from laconic.export.gguf.target import GgufTarget

__all__ = ["GgufTarget"]
