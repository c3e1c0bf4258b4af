"""Zeros in a matrix: which weights go, and what becomes of those that stay."""
