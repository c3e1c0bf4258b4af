"""Internal: the functions of the package `laconic`, each in a module of its own, and what they return."""
