"""Pure tensor functions: roots, truncations, losses. Nothing here knows of modules, models or files.

Internal: it may change with any version.
"""
