"""The layout of fused matrices in an entry equals the way in which the model splits them."""

import pytest
import torch

from laconic.errors import UserError
from laconic.model import ANATOMIES, Group, LanguageModel, Role, Site
from tests.architectures import BY_NAME, HEADS, INNER, WIDTH, batch_for
from tests.experts import MIXTURES
from tests.model.test_hybrids import HYBRIDS
from tests.model.test_vision_language import ENTRIES

FUSED = ["gpt2", "gpt-neox", "deberta-masked", "modernbert-masked"]
SIZE = WIDTH // HEADS


def rows_of_a_head(layout: str, part: int, head: int) -> slice:
    """The rows of query (0), key (1) or value (2) of one head in a fused matrix."""
    start = part * WIDTH + head * SIZE if layout == "stacked" else (3 * head + part) * SIZE
    return slice(start, start + SIZE)


def read_by(lm: LanguageModel, site: Site) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = site.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        lm.model(**batch_for(lm.model))
    hook.remove()
    return seen[0][0]


@torch.no_grad()
@pytest.mark.parametrize("name", FUSED)
def test_rows_of_a_head(name: str) -> None:
    """Without its values a head has nothing to say, and the others say what they said."""
    lm = BY_NAME[name].lm()
    attention = lm.anatomy.stacks[0].attention
    assert attention is not None
    fused = next(site for site in lm.sites() if site.role is Role.FUSED)
    output = next(site for site in lm.sites() if site.role is Role.OUTPUT)
    before = read_by(lm, output)
    rows = rows_of_a_head(attention.fused_layout, part=2, head=1)
    fused.weight()[rows] = 0
    bias = fused.bias()
    if bias is not None:
        bias[rows] = 0
    for parameter, tensor in lm.model.named_parameters():
        if parameter.endswith("v_bias"):
            tensor.zero_()
    after = read_by(lm, output)
    head = slice(SIZE, 2 * SIZE)
    assert not after[:, head].any()
    assert after[:, : head.start].any(-1).all() and after[:, head.stop :].any(-1).all()
    assert name == "deberta-masked" or torch.allclose(after[:, head.stop :], before[:, head.stop :])


@torch.no_grad()
def test_halves_of_a_fused_gate() -> None:
    """The half above is activated: where it is zero, so is the product; a constant below scales it."""
    lm = BY_NAME["modernbert-masked"].lm()
    (feed_forward,) = lm.anatomy.stacks[0].feed_forward
    assert feed_forward.fused_gate
    inner, output = (
        next(site for site in lm.sites(("ffn",)) if site.role is role) for role in (Role.INNER, Role.OUTPUT)
    )
    x = read_by(lm, inner)
    above, below = torch.nn.functional.linear(x, inner.weight()).split(INNER, dim=-1)
    assert torch.allclose(read_by(lm, output), torch.nn.functional.gelu(above) * below, atol=1e-5)


def test_every_model_type_has_one_entry() -> None:
    names = [name for anatomy in ANATOMIES for name in anatomy.model_types]
    assert len(names) == len(set(names))
    known = {BY_NAME[name].lm().model.config.model_type for name in BY_NAME}
    builders = [values[0] for values in (*HYBRIDS.values(), *MIXTURES.values())]
    elsewhere = {build().config.model_type for build in builders} | set(ENTRIES.values()) | {"granitemoe"}
    assert known | elsewhere == set(names)


def test_what_a_model_lacks_is_no_site() -> None:
    """DeBERTa without relative positions has no projections of them."""
    import transformers as hf

    from tests.tiny_models import ENCODER

    lm = LanguageModel.of(hf.DebertaForMaskedLM(hf.DebertaConfig(**ENCODER)))
    assert {site.role for site in lm.sites() if site.group is Group.ATTENTION} == {Role.FUSED, Role.OUTPUT}
    with pytest.raises(UserError, match="matches no site"):
        lm.sites(("*pos_proj",))
