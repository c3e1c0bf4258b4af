"""Divide one budget among many matrices: given candidate sizes of each matrix, return a plan.

This package is internal: it may change with any version.
"""

from laconic.allocate.plan import (
    Plan,
    group_name,
    parse_plan,
    plan_text,
    plan_to_config,
    read_plan,
    site_names,
    write_plan,
)
from laconic.allocate.spectrum import (
    Alternatives,
    Budget,
    Currency,
    allocate_spectrum,
    budget_for,
    check_overhead,
    choose_candidates,
)
from laconic.allocate.uniform import allocate_uniform

__all__ = [
    "Alternatives",
    "Budget",
    "Currency",
    "Plan",
    "allocate_spectrum",
    "allocate_uniform",
    "budget_for",
    "check_overhead",
    "choose_candidates",
    "group_name",
    "parse_plan",
    "plan_text",
    "plan_to_config",
    "read_plan",
    "site_names",
    "write_plan",
]
