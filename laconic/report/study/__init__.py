"""The report of a study: its records as tables, pictures and one page, and queries of them."""

from laconic.report.study.write import ReportPaths, query, write_report

__all__ = ["ReportPaths", "query", "write_report"]
