"""What makes the documentation: the generated reference pages, the check of docstrings, the hooks of mkdocs."""
