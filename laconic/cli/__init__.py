"""The command line: one file per verb.

Internal: it may change with any version.
"""
