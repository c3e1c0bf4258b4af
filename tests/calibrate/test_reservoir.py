"""The sample of a layer's tokens is the same whatever the order, the batches and the padding, and about uniform."""

import torch

from laconic.calibrate.reservoir import Reservoir, token_keys


def rows_with_keys(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1000, (count, 1), generator=torch.Generator().manual_seed(0))
    return torch.arange(count)[:, None].float(), token_keys(ids, torch.ones_like(ids, dtype=torch.bool))


def test_the_order_of_rows_does_not_matter():
    rows, keys = rows_with_keys(300)
    samples = []
    for order in (torch.arange(300), torch.arange(300).flip(0)):
        reservoir = Reservoir(20)
        for part in order.split(7):
            reservoir.add(rows[part], keys[part])
        samples.append(sorted(reservoir.rows.flatten().tolist()))
    assert samples[0] == samples[1] and len(samples[0]) == 20
    assert set(samples[0]) == set(keys.sort().indices[:20].tolist())


def test_a_sample_that_is_not_full_has_every_row():
    reservoir = Reservoir(5)
    reservoir.add(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long))
    reservoir.add(*rows_with_keys(3))
    assert sorted(reservoir.rows.flatten().tolist()) == [0, 1, 2]


def test_keys_depend_on_the_text_and_not_on_its_padding():
    text = torch.randint(50, (9,), generator=torch.Generator().manual_seed(1))
    left, right = torch.zeros(2, 1, 14, dtype=torch.long), torch.zeros(2, 1, 14, dtype=torch.bool)
    ids, counted = torch.stack([left[0], left[1]]), right.clone()
    ids[0, 0, -9:], counted[0, 0, -9:] = text, True
    ids[1, 0, :9], counted[1, 0, :9] = text, True
    alone = token_keys(text[None], torch.ones(1, 9, dtype=torch.bool))
    assert torch.equal(token_keys(ids[0], counted[0]), alone) and torch.equal(token_keys(ids[1], counted[1]), alone)
    changed = text.clone()
    changed[-1] += 1
    assert not (token_keys(changed[None], torch.ones(1, 9, dtype=torch.bool)) == alone).any()


def test_keys_are_spread_over_all_numbers():
    keys = token_keys(torch.arange(2000).view(20, 100), torch.ones(20, 100, dtype=torch.bool)).double() / 2**63
    assert len(keys.unique()) == 2000
    # Uniform over (−1, 1): mean 0 and mean square 1/3, within four deviations.
    assert abs(keys.mean().item()) < 4 * (1 / 3 / 2000) ** 0.5
    assert abs(keys.square().mean().item() - 1 / 3) < 4 * (4 / 45 / 2000) ** 0.5
