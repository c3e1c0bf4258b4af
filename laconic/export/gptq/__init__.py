"""Export to the GPTQ format, which many engines read that know no other format of codes.

Internal: it may change with any version.
"""
