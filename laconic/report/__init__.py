"""What was measured, for people: tables, plots, one HTML page.

Internal: it may change with any version.
"""
