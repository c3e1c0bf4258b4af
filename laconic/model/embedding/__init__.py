"""Sentence vectors: what a folder of sentence-transformers declares to be done with the last hidden states."""

from laconic.model.embedding.pipeline import MEAN, Pipeline, check_width, for_width

__all__ = ["MEAN", "Pipeline", "check_width", "for_width"]
