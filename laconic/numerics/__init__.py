"""Pure tensor functions: roots, truncations, losses. Nothing here knows of modules, models or files."""
