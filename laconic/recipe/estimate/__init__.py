"""Estimate the time, the memory and the disk space of a recipe before it runs."""
