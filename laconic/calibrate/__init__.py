"""Calibration: texts in, statistics of the inputs and gradients of every linear layer out.

Methods declare which of the statistics they need. The page on methods of your own lists the names that a plug-in may
import; everything else is internal and may change with any version.
"""

from laconic.calibrate.collect_stats import Calibration, Labels, collect_stats
from laconic.calibrate.layer_stats import LayerStats, Means, Problem, concatenate_problems, concatenate_stats, merge
from laconic.calibrate.sequential import SequentialConfig, sequential_calibrate
from laconic.calibrate.statistics import (
    STATISTICS,
    AbsMax,
    AbsMean,
    Fisher,
    GradCovariance,
    GradientStatistic,
    InputCovariance,
    InputStatistic,
    Mean,
    Statistic,
)

__all__ = [
    "STATISTICS",
    "AbsMax",
    "AbsMean",
    "Calibration",
    "Fisher",
    "GradCovariance",
    "GradientStatistic",
    "InputCovariance",
    "InputStatistic",
    "Labels",
    "LayerStats",
    "Mean",
    "Means",
    "Problem",
    "SequentialConfig",
    "Statistic",
    "collect_stats",
    "concatenate_problems",
    "concatenate_stats",
    "merge",
    "sequential_calibrate",
]
