"""Every matrix keeps the same fraction of its bytes, and all together what was asked for, on narrow models too."""

import pytest
import torch

from laconic.allocate import allocate_uniform
from laconic.errors import UserError
from laconic.methods import METHODS, AnyOf, Drone, Gptq, Method, Plus, Rtn, Svd
from laconic.methods.lowrank.base import LowRankMethod
from laconic.numerics.lowrank import break_even_rank

Shapes = dict[str, tuple[int, int]]
DISCRETE = {"rtn", "awq", "gptq", "yaqa", "kmeans"}
"""Those whose sizes are whole bits."""


def llama(width: int, channels: int, blocks: int = 2) -> Shapes:
    """The matrices of a decoder whose keys and values have half as many heads."""
    one = {"q": (width, width), "k": (width // 2, width), "v": (width // 2, width), "o": (width, width),
           "gate": (channels, width), "up": (channels, width), "down": (width, channels)}  # fmt: skip
    return {f"{block}.{name}": shape for block in range(blocks) for name, shape in one.items()}


def numbers(shapes: Shapes) -> int:
    return sum(rows * columns for rows, columns in shapes.values())


def rank_of(method: Method | None) -> int:
    assert isinstance(method, LowRankMethod) and method.rank is not None
    return method.rank


def kept(method: Method, shapes: Shapes, keep: float, dtype: torch.dtype) -> float:
    plan = allocate_uniform(method, shapes, keep, dtype)
    nbytes = sum(one.meta_format(shapes[name]).to(dtype).nbytes() for name, one in plan.items() if one is not None)
    return nbytes / (numbers(shapes) * dtype.itemsize)


@pytest.mark.parametrize("width", [64, 96, 160])
@pytest.mark.parametrize("keep", [0.65, 0.5, 0.25, 0.1])
def test_together_the_matrices_keep_what_is_asked_for_and_never_more(width: int, keep: float) -> None:
    for method in METHODS:
        if method().has_size or method.name in DISCRETE or method is AnyOf or (method is Plus and keep == 0.65):
            # Equal fractions are refused for any-of. At 0.65 both parts of a sum are as large as they can be.
            continue
        assert 0.99 * keep <= kept(method(), llama(width, 8 * width // 3), keep, torch.float32) <= keep, method.name


def test_ranks_are_multiples_of_eight_where_these_are_near_enough() -> None:
    shapes = {str(number): (384, 384) for number in range(12)} | {"up": (1536, 384), "down": (384, 1536)}
    # 96 of 192 and 152 of 153.6 ranks: less than a hundredth is left over, so nothing is spent on single matrices.
    plan = allocate_uniform(Svd(), shapes, 0.5)
    assert {name: rank_of(one) for name, one in plan.items()} == {**dict.fromkeys(map(str, range(12)), 96),
                                                              "up": 152, "down": 152}  # fmt: skip
    # 124.8 and 199.68: what 120 and 192 leave goes, eight ranks at a time, to those that are furthest below.
    ranks = [rank_of(one) for one in allocate_uniform(Svd(), shapes, 0.65).values()]
    assert ranks == [*[128] * 12, 192, 192]
    assert sum(rank * sum(shape) for rank, shape in zip(ranks, shapes.values(), strict=True)) <= 0.65 * numbers(shapes)


def test_single_ranks_are_spent_where_eight_are_too_many() -> None:
    # Half of (64, 172) is rank 23.3, of (64, 64) rank 16.
    plan = allocate_uniform(Drone(), {"a": (64, 172), "b": (64, 64)}, 0.5)
    assert {name: rank_of(one) for name, one in plan.items()} == {"a": 23, "b": 16}
    assert allocate_uniform(Drone(), {"a": (64, 172), "b": (64, 64)}, 0.5) == plan
    # Of two such, one has eight ranks more within what both leave, and the other what is left after that.
    plan = allocate_uniform(Drone(), {"a": (64, 172), "b": (64, 172)}, 0.5)
    assert [rank_of(one) for one in plan.values()] == [24, 22]


def test_no_rank_is_as_large_as_the_matrix() -> None:
    for keep in (0.97, 0.999):
        plan = allocate_uniform(Svd(), llama(64, 172), keep)
        assert all(rank_of(one) <= break_even_rank(*shape) for one, shape in zip(plan.values(), llama(64, 172).values(),
                                                                              strict=True))  # fmt: skip


def test_bits_are_the_same_for_all_of_one_shape() -> None:
    plan = allocate_uniform(Rtn(), llama(64, 172), 0.2)
    assert [plan[f"0.{name}"] for name in ("q", "gate")] == [plan[f"1.{name}"] for name in ("q", "gate")]


def test_where_the_smallest_size_is_more_than_its_share_the_others_get_less() -> None:
    # Rank 1 of a head of two classes takes 66 of its 128 numbers; half of (64, 64) is rank 16 exactly.
    shapes = {"a": (64, 64), "b": (64, 64), "classifier": (2, 64)}
    plan = allocate_uniform(Svd(), shapes, 0.5)
    assert plan["classifier"] == Svd(rank=1)
    assert kept(Svd(), shapes, 0.5, torch.float32) <= 0.5


def test_less_than_the_smallest_sizes_is_refused() -> None:
    # Two bits and the scales of 64 weights are 0.143 of sixteen.
    with pytest.raises(
        UserError, match=r"keep must be at least 0\.1\d+, the fraction that the smallest sizes keep; got 0\.1\."
    ):
        allocate_uniform(Gptq(), llama(64, 172), 0.1, torch.bfloat16)
    with pytest.raises(
        UserError, match=r"keep must be at least 0\.0313, the fraction that the smallest sizes keep; got 0"
    ):
        allocate_uniform(Svd(), {"a": (64, 64)}, 0.02)
    assert allocate_uniform(Svd(), {"a": (64, 64)}, 0.0313)["a"] == Svd(rank=1)
