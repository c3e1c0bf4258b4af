"""The report of a study: its records as tables, pictures and one page, and queries of them."""

from laconic.report.study.sql import query
from laconic.report.study.write import Written, write_report

__all__ = ["Written", "query", "write_report"]
