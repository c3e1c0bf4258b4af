"""Pure functions of tensors: matrix roots, low-rank factors, masks, quantization grids, losses.

Internal: it may change with any version.
"""
