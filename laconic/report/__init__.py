"""Reports of measurements: tables, plots and HTML pages.

Internal: it may change with any version.
"""
