"""The checks that every method, step, format and architecture of laconic passes, for those of plug-ins.

Each function returns nothing where all holds, and raises an AssertionError that says what does not. None needs pytest:

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
