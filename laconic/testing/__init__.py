"""Checks for the methods, steps, formats and architectures of plug-ins; those of laconic pass the same checks.

Each function raises an AssertionError with the reason if the check fails. No function needs pytest:

    from laconic.testing import check_method

    def test_coala():
        check_method(Coala(multiple=1))
"""

from laconic.testing.formats import FORMAT_CHECKS, check_format
from laconic.testing.matrices import MATRICES, Matrix, random_matrix, stats_of
from laconic.testing.methods import METHOD_CHECKS, check_method
from laconic.testing.models import check_architecture, check_step, random_batch, randomize

__all__ = [
    "FORMAT_CHECKS",
    "MATRICES",
    "METHOD_CHECKS",
    "Matrix",
    "check_architecture",
    "check_format",
    "check_method",
    "check_step",
    "random_batch",
    "random_matrix",
    "randomize",
    "stats_of",
]
