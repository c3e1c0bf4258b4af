"""Quantization: store each weight as a code of a few bits."""
