"""A method, an architecture and a task that laconic finds by the entry points in pyproject.toml."""
