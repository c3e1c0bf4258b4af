"""The numbers of heads and channels that stay in each layer."""

from laconic.compress.width_counts import WidthCounts
from laconic.compress.width_parts import RemovalOrder
from laconic.model import Group
from laconic.model.prunable_group import CoupledGroups, couple_groups, prunable_groups
from tests.architectures import BY_NAME, INNER

HALF = {Group.ATTENTION: 1.0, Group.FFN: 0.5}


def order_of(coupled: CoupledGroups, least: int) -> RemovalOrder:
    """Channels of the second block cost twice as much as those of the first."""
    count = coupled[0].count
    cost = 2.0 if ".1." in coupled[0].name else 1.0
    return RemovalOrder(tuple(range(count - least)), (cost,) * (count - least), count)


def test_layers_keep_the_same_fraction_unless_they_compete() -> None:
    layers = couple_groups(prunable_groups(BY_NAME["llama"].lm(), (Group.FFN,)))
    first, second = (coupled[0].coupling for coupled in layers)
    alone = WidthCounts(HALF, None, "bytes", 8, "obs", compares=False)
    assert alone.count(layers, order_of) == {first: INNER // 2, second: INNER // 2}
    compared = WidthCounts(HALF, None, "bytes", 8, "obs", compares=True)
    counts = compared.count(layers, order_of)
    assert counts[first] < INNER // 2 < counts[second] and sum(counts.values()) == INNER
