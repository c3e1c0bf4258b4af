"""What is known of each matrix: texts in, statistics of inputs and gradients out."""

from laconic.calibrate.calibration import Calibration, Labels
from laconic.calibrate.known import Known, merge, stacked
from laconic.calibrate.problem import Means, Problem, stack
from laconic.calibrate.statistics import (
    STATISTICS,
    AbsMax,
    AbsMean,
    Fisher,
    GradientStatistic,
    Gram,
    InputStatistic,
    Mean,
    OutputGram,
    Statistic,
)
from laconic.calibrate.survey import survey
from laconic.calibrate.walk import Course, walk

__all__ = [
    "STATISTICS",
    "AbsMax",
    "AbsMean",
    "Calibration",
    "Course",
    "Fisher",
    "GradientStatistic",
    "Gram",
    "InputStatistic",
    "Known",
    "Labels",
    "Mean",
    "Means",
    "OutputGram",
    "Problem",
    "Statistic",
    "merge",
    "stack",
    "stacked",
    "survey",
    "walk",
]
