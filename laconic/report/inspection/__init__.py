"""Inspect a model: measure its weights and its activations on texts, and describe them in figures and sentences."""
