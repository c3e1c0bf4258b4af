"""A grid of recipes over models, tasks and seeds: run, resumed, spread over workers, and gathered in a ledger."""

from laconic.study.about import keep_study, of_the_study, title_of
from laconic.study.cells import Cell
from laconic.study.executors import Executor
from laconic.study.grid import cells_of
from laconic.study.ledger import FAILED, Ledger, Record
from laconic.study.mlflow_logger import MlflowLogger, check_logging
from laconic.study.parse import parse_study, read_study, study_from
from laconic.study.run import Summary, check_cells, run_study
from laconic.study.schema import Study

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
    "keep_study",
    "of_the_study",
    "parse_study",
    "read_study",
    "run_study",
    "study_from",
    "title_of",
]
