"""The contract that every method keeps. A method joins by its example below; leaving one out fails."""

import itertools
from collections.abc import Callable

import pytest
import torch

from laconic.calibrate import LayerStats
from laconic.methods import (
    METHODS,
    AnyOf,
    Asvd,
    Awq,
    Drone,
    Fwsvd,
    Gptq,
    Int8,
    KfacPrune,
    KfacSvd,
    KMeans,
    LnStructured,
    Magnitude,
    Method,
    Plus,
    Random,
    RandomStructured,
    Rtn,
    SparseGpt,
    Svd,
    Wanda,
    Wlra,
    Yaqa,
)
from laconic.methods.prune.base import PruningMethod, UnstructuredPruning
from laconic.methods.registry import parse_method, to_config
from laconic.testing import METHOD_CHECKS
from laconic.testing.methods import check_candidates
from tests.matrices import case

EXAMPLES: tuple[Method, ...] = (
    Svd(multiple=1),
    Fwsvd(multiple=1),
    Wlra(multiple=1),
    Asvd(multiple=1),
    Drone(multiple=1),
    KfacSvd(multiple=1),
    Magnitude(),
    Random(),
    Wanda(),
    SparseGpt(),
    KfacPrune(),
    LnStructured(),
    RandomStructured(),
    Rtn(),
    Awq(),
    Gptq(),
    Yaqa(),
    KMeans(),
    Int8(),
    Plus(),
    AnyOf(methods=(Yaqa(), KfacSvd(multiple=1))),
)

every_method = pytest.mark.parametrize("method", EXAMPLES, ids=lambda method: method.name)
every_check = pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=pytest.mark.slow) if check is check_candidates else check for check in METHOD_CHECKS],
    ids=lambda check: check.__name__,
)


def test_no_method_is_left_out():
    assert {type(example) for example in EXAMPLES} == set(METHODS)


def test_names_are_unique():
    assert len({method.name for method in METHODS}) == len(METHODS)


@every_method
@every_check
def test_it_keeps_the_contract(method: Method, check: Callable[[Method], None]):
    check(method)


@every_method
def test_it_is_found_by_its_name(method: Method):
    assert parse_method(to_config(method), "method") == method
    assert parse_method(method.name, "method") == type(method)()


@pytest.mark.parametrize("method", [method for method in EXAMPLES if method.keeps_support], ids=lambda one: one.name)
def test_its_form_counts_what_an_earlier_step_left(method: Method):
    matrix = case("pruned before", (24, 40))
    support = torch.rand(24, 40, generator=torch.Generator().manual_seed(0)) > 0.2
    kept = int(support.count_nonzero())
    sized = (
        method.with_keep(0.9, (24, 40)) if isinstance(method, UnstructuredPruning) else method.with_keep(0.3, (24, 40))
    )
    made = sized.compress(matrix.weight * support, LayerStats(matrix.stats, support))
    # Where whole rows or columns go, or as many of every row, it depends on where the zeros are.
    if not isinstance(sized, PruningMethod) or sized.granularity((24, 40)) == 1:
        assert sized.meta_format((24, 40), kept).spec() == made.spec()
    assert sized.meta_format((24, 40), kept).support is not None


def test_a_method_that_minimises_the_predicted_loss_falls_at_every_candidate():
    matrix = case("falling", (24, 40))
    losses = [candidate.loss for candidate in KfacSvd(multiple=1).candidates(matrix.weight, matrix.stats).all]
    assert all(later <= earlier * (1 + 1e-3) for earlier, later in itertools.pairwise(losses))
