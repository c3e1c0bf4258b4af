"""Pruning: set weights to zero, and adjust the weights that are kept."""
