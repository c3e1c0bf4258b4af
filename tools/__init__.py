"""Tools of the documentation: generated reference pages, the check of docstrings, the hooks of mkdocs."""
