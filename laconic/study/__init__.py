"""Studies: a study runs a grid of recipes over models, tasks and seeds. It can be resumed and run by several workers.

Internal: it may change with any version.
"""

from laconic.study.cells import FAILED, Cell
from laconic.study.executors import Executor, make_executor
from laconic.study.grid import cells_of
from laconic.study.ledger import Ledger, Record, of_the_study, own_records, save_study, title_of
from laconic.study.mlflow_logger import MlflowLogger, check_logging
from laconic.study.run import Summary, check_cells, estimate_seconds, run_study
from laconic.study.schema import Study, parse_study, read_study, study_from

__all__ = [
    "FAILED",
    "Cell",
    "Executor",
    "Ledger",
    "MlflowLogger",
    "Record",
    "Study",
    "Summary",
    "cells_of",
    "check_cells",
    "check_logging",
    "estimate_seconds",
    "make_executor",
    "of_the_study",
    "own_records",
    "parse_study",
    "read_study",
    "run_study",
    "save_study",
    "study_from",
    "title_of",
]
