"""Sites with the same input key read one tensor, whose rows belong to the tokens that the site names."""

from collections.abc import Callable
from itertools import cycle

import pytest
import torch
from torch import Tensor, nn

from laconic.model import InputTokens, LanguageModel, Site
from tests.architectures import BLOCKS, EVERY_ARCHITECTURE, Architecture, batch_for

every_architecture = pytest.mark.parametrize(
    "architecture", EVERY_ARCHITECTURE, ids=lambda architecture: architecture.name
)


def inputs_of(lm: LanguageModel, sites: list[Site]) -> dict[str, list[torch.Tensor]]:
    """The inputs of each site in one forward pass, one tensor for each call."""
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: seen.setdefault(name, []).append(args[0].detach().clone())

    handles = [site.module.register_forward_pre_hook(keep(site.name)) for site in sites]
    with torch.no_grad():
        lm.model(**batch_for(lm.model))
    for handle in handles:
        handle.remove()
    return seen


@every_architecture
def test_sites_of_one_input_read_the_same_tensors(architecture: Architecture) -> None:
    lm = architecture.lm()
    sites = lm.sites(("blocks",))
    seen = inputs_of(lm, sites)
    assert len(seen) == len(sites)
    first: dict[str, list[torch.Tensor]] = {}
    for site in sites:
        expected = first.setdefault(site.input, seen[site.name])
        assert len(seen[site.name]) == len(expected), site.name
        assert all(map(torch.equal, seen[site.name], expected)), site.name
    # And what is measured apart is not the same after all.
    distinct = {tuple(torch.cat([x.flatten() for x in calls]).tolist()) for calls in first.values()}
    # Every cross-attention of a decoder reads the one output of the encoder, and all blocks the one table of positions;
    # DeBERTa's values have a measure of their own, as its queries and keys may read positions too.
    repeated = {"deberta-masked": BLOCKS - 1, "deberta-v2-masked": BLOCKS - 1 + BLOCKS}
    default = BLOCKS - 1 if lm.model.config.is_encoder_decoder else 0
    assert len(distinct) == len(first) - repeated.get(architecture.name, default)


@every_architecture
def test_rows_are_those_of_the_tokens_that_a_site_says_it_reads(architecture: Architecture) -> None:
    lm = architecture.lm()
    lengths = {InputTokens.SOURCE: 7, InputTokens.TARGET: 5 if lm.model.config.is_encoder_decoder else 7}
    sites = lm.sites(("blocks",))
    seen = inputs_of(lm, sites)
    for site in sites:
        calls, (place,) = seen[site.name], site.places
        # ALBERT's one block is called once a layer, and only some DeBERTas read positions by the same projections.
        unusual = architecture.name.startswith("albert") or architecture.name == "deberta-v2-masked"
        assert len(calls) == len(place.reads) or unusual, site.name
        for x, reads in zip(calls, cycle(place.reads), strict=False):
            rows = (x.transpose(0, 1) if place.tokens_first else x).shape[:-1]
            if reads is InputTokens.OWN:
                assert rows in ((1, 8), (1, 14), (2, 1)), site.name
                continue
            padded = 8 if lm.anatomy.global_attention and rows != (2, lengths[reads]) else lengths[reads]
            assert rows in ((2, padded), (2 * padded,)), site.name
