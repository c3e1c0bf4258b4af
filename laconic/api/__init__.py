"""Internal: the functions of the package `laconic` and their results, one module for each function."""
