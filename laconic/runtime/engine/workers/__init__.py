"""Scripts that engines run in other environments. Python looks for modules in their folder first."""
