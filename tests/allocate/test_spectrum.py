"""Water-filling against the exhaustive optimum, its budget, and its hull."""

from itertools import pairwise, product

import pytest
import torch

from laconic.allocate import allocate_spectrum, allocate_uniform, budget_for
from laconic.allocate import choose_candidates as choose_among
from laconic.allocate.spectrum import Combination, Currency, combinations, lower_hull
from laconic.errors import UserError
from laconic.methods import Candidate, Candidates, Drone, KfacSvd, Svd
from tests.matrices import case


def candidates(costs_and_losses: list[tuple[int, float]]) -> Candidates:
    """Rungs of the given bytes and losses; the last is the dense matrix."""
    rungs = [
        Candidate(method=Svd(rank=i + 1), nbytes=cost, parameters=cost, products=((1, cost),), loss=loss)
        for i, (cost, loss) in enumerate(costs_and_losses[:-1])
    ]
    cost, loss = costs_and_losses[-1]
    return Candidates((*rungs, Candidate(method=None, nbytes=cost, parameters=cost, products=((1, cost),), loss=loss)))


def choose_candidates(offers: dict[str, Candidates], keep: float, currency: Currency = "bytes") -> dict[str, Candidate]:
    """The rungs chosen where every offer stands alone."""
    return choose_among(
        [[{name: offer}] for name, offer in offers.items()], budget_for(offers.values(), keep, currency)
    )


def hull(offer: Candidates) -> list[Combination]:
    return lower_hull(combinations([{"only": offer}], lambda candidate: candidate.nbytes))


def random_ladders(seed: int) -> dict[str, Candidates]:
    generator = torch.Generator().manual_seed(seed)
    offers = {}
    for name in "abcd":
        falls = torch.rand(5, generator=generator).cumsum(0).flip(0).tolist()
        offers[name] = candidates([(10 * (i + 1), fall) for i, fall in enumerate(falls)] + [(70, 0.0)])
    return offers


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_it_is_within_one_step_of_the_exhaustive_optimum(seed, keep):
    offers = random_ladders(seed)
    budget = int(keep * 4 * 70)
    best = min(
        sum(candidate.loss for candidate in rungs)
        for rungs in product(*(offer.all for offer in offers.values()))
        if sum(candidate.nbytes for candidate in rungs) <= budget
    )
    chosen = choose_candidates(offers, keep)
    assert sum(candidate.nbytes for candidate in chosen.values()) <= budget
    largest_step = max(
        earlier.loss - later.loss for offer in offers.values() for earlier, later in pairwise(hull(offer))
    )
    assert sum(candidate.loss for candidate in chosen.values()) <= best + largest_step


def test_keeping_everything_keeps_everything_dense():
    assert set(allocate_spectrum(random_ladders(0), 1.0).values()) == {None}


def test_what_the_last_step_leaves_over_is_spent():
    offers = {"a": candidates([(10, 5.0), (11, 4.9), (100, 0.0)])}
    assert choose_candidates(offers, 0.12)["a"].nbytes == 11


def test_a_budget_below_the_smallest_sizes_is_one_sentence():
    with pytest.raises(UserError, match=r"keep must be at least 0\.1429"):
        choose_candidates(random_ladders(0), 0.05)


def test_the_hull_is_convex_and_falling():
    kept = hull(candidates([(10, 5.0), (20, 4.9), (30, 1.0), (40, 2.0), (70, 0.0)]))
    assert [option.cost for option in kept] == [10, 30, 70]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [0.4, 0.6])
def test_of_two_ways_to_present_the_same_matrices_the_better_is_taken(seed, keep):
    """Against every combination of rungs: a, b and c apart or as one, beside d."""
    apart = random_ladders(seed)
    generator = torch.Generator().manual_seed(100 + seed)
    falls = (2 * torch.rand(6, generator=generator)).cumsum(0).flip(0).tolist()
    joint = candidates([(30 * (i + 1), fall) for i, fall in enumerate(falls)] + [(210, 0.0)])
    families = [[{name: apart[name] for name in "abc"}, {"abc": joint}], [{"d": apart["d"]}]]
    budget = budget_for(apart.values(), keep, "bytes")
    chosen = choose_among(families, budget)
    assert set(chosen) in ({"a", "b", "c", "d"}, {"abc", "d"})
    assert sum(candidate.nbytes for candidate in chosen.values()) <= budget.limit
    alone = choose_candidates(apart, keep)
    together = choose_candidates({"abc": joint, "d": apart["d"]}, keep)
    best = min(sum(candidate.loss for candidate in one.values()) for one in (alone, together))
    slack = max(
        earlier.loss - later.loss for offer in (*apart.values(), joint) for earlier, later in pairwise(hull(offer))
    )
    assert sum(candidate.loss for candidate in chosen.values()) <= best + slack


@pytest.mark.parametrize("currency", ["bytes", "parameters", "macs"])
def test_the_sensitive_matrix_gets_more(currency):
    shy, loud = case("shy", (24, 40)), case("loud", (24, 40))
    offers = {
        "shy": KfacSvd(multiple=1).candidates(shy.weight * 0.01, shy.stats),
        "loud": KfacSvd(multiple=1).candidates(loud.weight * 10, loud.stats),
    }
    chosen = choose_candidates(offers, 0.5, currency)
    assert chosen["loud"].nbytes > chosen["shy"].nbytes


def test_ladders_of_two_methods_are_one_search():
    matrix = case("mixed", (24, 40))
    both = Svd(multiple=1).candidates(matrix.weight, matrix.stats) | KfacSvd(multiple=1).candidates(
        matrix.weight, matrix.stats
    )
    chosen = choose_candidates({"only": both}, 0.5)["only"]
    assert isinstance(chosen.method, KfacSvd)


def test_uniform_gives_every_matrix_its_own_rank_and_keeps_everything_dense():
    shapes = {"square": (384, 384), "tall": (1536, 384)}
    assert allocate_uniform(Drone(), shapes, 0.5) == {"square": Drone(rank=96), "tall": Drone(rank=152)}
    assert allocate_uniform(Drone(), shapes, 1.0) == {"square": None, "tall": None}
