"""Measure quality (GLUE, LAMA, BLiMP, perplexity, exact match, fidelity) and cost (bytes, operations, time, memory).

Internal: it may change with any version.
"""

from laconic.evaluate.comparable import check_comparable
from laconic.evaluate.contamination import calibration_sources
from laconic.evaluate.cost import Conditions, Cost, measure_cost
from laconic.evaluate.fidelity import Fidelity, Reference, compare_to_reference
from laconic.evaluate.references import ReferenceCache
from laconic.evaluate.run import Evaluation, evaluate
from laconic.evaluate.tasks import check_task, check_tasks
from laconic.evaluate.timing import Latency, latency

__all__ = [
    "Conditions",
    "Cost",
    "Evaluation",
    "Fidelity",
    "Latency",
    "Reference",
    "ReferenceCache",
    "calibration_sources",
    "check_comparable",
    "check_task",
    "check_tasks",
    "compare_to_reference",
    "evaluate",
    "latency",
    "measure_cost",
]
