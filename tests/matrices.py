"""The matrices of `laconic.testing`, by the short names of these tests."""

from laconic.testing.matrices import MATRICES as CASES
from laconic.testing.matrices import Matrix as Case
from laconic.testing.matrices import random_matrix as case
from laconic.testing.matrices import stats_of

__all__ = ["CASES", "Case", "case", "stats_of"]
