"""Fewer heads and channels: the function of the whole model with the others zeroed, on every architecture."""

from typing import Any, cast

import pytest
import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedModel

from laconic.compress import Narrow
from laconic.errors import UserError
from laconic.formats import LowRank
from laconic.model import ANATOMIES, Group, LanguageModel
from laconic.model.anatomy.heads import Obstacle
from laconic.model.prunable_group import couple_groups, prunable_groups
from laconic.model.prunable_layers import check_prunable
from laconic.model.width import EMPTY, keep_parts, update_config_widths
from laconic.store import materialize
from laconic.store.structure import describe
from tests.architectures import BY_NAME, HEADS, INNER, WIDTH, factors, outputs
from tests.experts import MIXTURES
from tests.model.test_hybrids import HYBRIDS
from tests.model.test_vision_language import ENTRIES
from tests.narrow import COMPUTED_WIDTH, EVERY, FIXED_HEADS, ONE_OF_EACH, counts, narrowed, zeroed
from tests.tiny_models import DECODER, ENCODER, RELATIVE, SMALL

every_architecture = pytest.mark.parametrize("name", EVERY)
uniformly_or_not = pytest.mark.parametrize("uniform", [True, False])
FOUND = {
    "gpt-oss": MIXTURES["gpt-oss"][0],
    "ernie": lambda: hf.ErnieForMaskedLM(hf.ErnieConfig(**cast(dict[str, Any], ENCODER), **SMALL)),
}
"""Models that `BY_NAME` does not have."""
GENERATING = ("gpt2", "gpt-neo", "gpt-neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3",
              "phi", "t5", "t5-gated", "bart", "marian", "led")  # fmt: skip


def test_every_architecture_is_tested():
    # Mixtures, hybrids and text stacks of vision-language models have tests of their own.
    builders = [values[0] for values in (*HYBRIDS.values(), *MIXTURES.values())]
    elsewhere = {build().config.model_type for build in builders} | set(ENTRIES.values()) | {"granitemoe"}
    assert {BY_NAME[name].model().config.model_type for name in EVERY} | elsewhere >= {
        name for anatomy in ANATOMIES for name in anatomy.model_types
    }


@every_architecture
@uniformly_or_not
def test_what_is_left_is_the_whole_with_the_rest_zeroed(name, uniform):
    whole = zeroed(name, uniform)
    lm = narrowed(name, uniform)
    torch.testing.assert_close(outputs(lm.model), outputs(whole.model), rtol=1e-5, atol=2e-6)
    saved = sum(part.numel() for part in whole.model.parameters()) - sum(p.numel() for p in lm.model.parameters())
    assert saved >= sum(
        inner.parameters * (inner.count - left.count)
        for inner, left in zip(prunable_groups(whole), prunable_groups(lm), strict=True)
    )


@every_architecture
def test_all_heads_and_channels_are_found(name):
    lm = BY_NAME[name].lm()
    heads, channels = counts(lm, Group.ATTENTION), counts(lm, Group.FFN)
    # Those of some decoders share their keys two by two.
    assert set(heads) <= {HEADS, 2} and bool(heads) != (name in FIXED_HEADS)
    assert set(channels) == {4 * WIDTH if name in COMPUTED_WIDTH else INNER}
    assert len(channels) == sum(len(blocks) for _, blocks in lm.stacks())


@pytest.mark.parametrize("name", GENERATING)
def test_generation_is_that_of_the_whole_with_and_without_a_cache(name):
    tokens = torch.tensor([[5, 9, 7, 4]])
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    said = []
    for lm, cached in ((narrowed(name, False), True), (narrowed(name, False), False), (zeroed(name, False), True)):
        assert isinstance(lm.model, PreTrainedModel)
        said.append(lm.model.generate(tokens, use_cache=cached, **options))
    assert torch.equal(said[0], said[1]) and torch.equal(said[0], said[2])


@pytest.mark.parametrize(
    "name", ["bert-classifier", "gpt2", "deberta-masked", "modernbert-masked", "llama", "t5", "bart"]
)
def test_implementations_of_attention_agree(name):
    lm = narrowed(name, False)
    found = []
    for implementation in ("eager", "sdpa"):
        if implementation == "sdpa" and not lm.model._supports_sdpa:
            continue
        lm.model.set_attn_implementation(implementation)
        found.append(outputs(lm.model))
    torch.testing.assert_close(found[0], found[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_parts_of_zeros_change_nothing(name):
    lm = BY_NAME[name].lm()
    before = outputs(lm.model)
    for inner in prunable_groups(lm):
        keep_parts(lm, inner, [*range(inner.count), EMPTY, EMPTY])
    torch.testing.assert_close(outputs(lm.model), before, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["bert-classifier", "t5", "llama"])
def test_the_order_of_the_parts_changes_nothing(name):
    lm = BY_NAME[name].lm()
    before = outputs(lm.model)
    for inner in prunable_groups(lm):
        keep_parts(lm, inner, list(reversed(range(inner.count))))
    torch.testing.assert_close(outputs(lm.model), before, rtol=1e-4, atol=1e-5)


def test_attentions_that_share_a_position_bias_are_one_family():
    lm = BY_NAME["t5"].lm()
    sizes = [len(family) for family in couple_groups(prunable_groups(lm, (Group.ATTENTION,)))]
    assert sizes == [2, 2, 2]
    (family,) = couple_groups(prunable_groups(BY_NAME["mpnet-masked"].lm(), (Group.ATTENTION,)))
    assert [group.bias for group in family] == ["mpnet.encoder.relative_attention_bias", None]
    assert all(len(family) == 1 for family in couple_groups(prunable_groups(BY_NAME["bart"].lm())))


def test_it_trains_as_before():
    lm = BY_NAME["gpt2"].lm()
    inner = prunable_groups(lm)[0]
    frozen = inner.writer.module.get_parameter("weight")
    frozen.requires_grad_(False)
    keep_parts(lm, inner, [0])
    site = prunable_groups(lm)[0].writer
    assert not site.module.get_parameter("weight").requires_grad
    assert prunable_groups(lm)[0].readers[0].site.module.get_parameter("weight").requires_grad


def test_half_precision_is_rounded_as_it_is_stored():
    lm = BY_NAME["bert-classifier"].lm().with_dtype(torch.float16)
    inner = prunable_groups(lm)[0]
    keep_parts(lm, inner, [1, 2], weight=torch.full((32, 16), 1 / 3), bias=torch.full((32,), 1 / 3))
    site = prunable_groups(lm)[0].writer
    assert site.weight().dtype == torch.float32 and torch.equal(site.weight().half().float(), site.weight())
    assert (site.bias() == torch.tensor(1 / 3).half().float()).all()


@pytest.mark.parametrize(
    ("name", "group", "sentence"),
    [
        (
            "led",
            Group.ATTENTION,
            r"^The heads of this 'led' .*, as its entry in .*anatomy does not describe them; narrow its channels, or c",
        ),
        ("longformer-masked", Group.ATTENTION, r"^The heads of this 'longformer' cannot be removed one by one, as "),
        (
            "gpt-oss",
            Group.ATTENTION,
            r"an attention sink; remove experts \(narrow:experts\), or compress its matrices\.$",
        ),
        ("gpt-oss", Group.FFN, r"^The channels .*, as all of them are in its experts; remove experts \(.*\), or comp"),
        ("ernie", Group.FFN, r", as the architecture has no entry in laconic.model.anatomy; compress its matrices\.$"),
        (
            "olmo2",
            Group.ATTENTION,
            r"^The heads of this 'olmo2' cannot .* one by one, as a norm covers the queries of all",
        ),
        (
            "big-bird-masked",
            Group.ATTENTION,
            r"^The heads of this 'big_bird' .*, as its class builds other attentions for short",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
def test_what_cannot_go_is_one_sentence(name, group, sentence):
    with pytest.raises(UserError, match=sentence):
        check_prunable(LanguageModel.of(FOUND[name]()) if name in FOUND else BY_NAME[name].lm(), group)


def small_llama(keys: int) -> LanguageModel:
    torch.manual_seed(0)
    config = hf.LlamaConfig(**{**DECODER, "num_key_value_heads": keys}, **SMALL)
    return LanguageModel.of(hf.LlamaForCausalLM(config).eval())


@pytest.mark.parametrize("keys", [1, 2])
def test_heads_that_share_the_only_key_go_one_by_one(keys: int) -> None:
    """Two keys become one, and then two query heads one; growing adds the query head first, and then the key."""
    lm = small_llama(keys)
    for group in prunable_groups(lm, (Group.ATTENTION,)):
        assert (group.count, group.heads, group.is_split) == ((4, 1, True) if keys == 1 else (2, 2, False))
        keep_parts(lm, group, [0, 2] if keys == 1 else [1])
    for group in prunable_groups(lm, (Group.ATTENTION,)):
        assert (group.count, [reader.each for reader in group.readers]) == (2, [(8,), (), ()])
        keep_parts(lm, group, [1])
    whole = small_llama(keys)
    head = 2 if keys == 1 else 3
    for site in whole.sites(("*o_proj",)):
        site.parameter.data[:, : head * 8] = 0
        site.parameter.data[:, (head + 1) * 8 :] = 0
    torch.testing.assert_close(outputs(lm.model), outputs(whole.model), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(outputs(materialize(lm.model)), outputs(whole.model), rtol=1e-5, atol=2e-6)
    update_config_widths(lm)
    config = lm.model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (1, 1, 8)
    assert not describe(lm.model)
    tokens = torch.tensor([[5, 9, 7, 4]])
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    assert torch.equal(*(lm.model.generate(tokens, use_cache=use, **options) for use in (True, False)))


def test_attentions_that_read_their_number_of_heads_from_the_configuration_have_equally_many() -> None:
    lm = BY_NAME["phi3"].lm()
    first, second = prunable_groups(lm, (Group.ATTENTION,))
    keep_parts(lm, first, [1])
    assert outputs(lm.model).isfinite().all(), "the others still read the configuration of before"
    with pytest.raises(
        UserError, match=r"^The class of 'phi3' reads the number of heads .* hold the 2 heads of 'model"
    ):
        update_config_widths(lm)
    keep_parts(lm, second, [0])
    update_config_widths(lm)
    assert (lm.model.config.num_attention_heads, lm.model.config.num_key_value_heads) == (2, 1)
    assert all(block.self_attn.config is lm.model.config for block in lm.model.model.layers)
    for arguments in ({"heads": 0.5, "ranking": "global"}, {"keep": 0.8}):
        with pytest.raises(UserError, match=r"^Attentions of 'phi3' must keep equally many heads, as its class reads"):
            Narrow(**arguments).check(BY_NAME["phi3"].lm())


def test_an_obstacle_may_depend_on_a_module_or_on_a_value():
    attention = nn.Module()
    attention.config = hf.FalconConfig(alibi=False)
    assert Obstacle(reason="always").exists_in(attention)
    by_module, by_value = Obstacle(reason="", module="q_norm"), Obstacle(reason="", flag="config.alibi")
    assert not by_module.exists_in(attention) and not by_value.exists_in(attention)
    attention.q_norm, attention.config = nn.Identity(), hf.FalconConfig(alibi=True)
    assert by_module.exists_in(attention) and by_value.exists_in(attention)


def test_heads_that_are_mixed_stay():
    mixed = hf.DebertaForMaskedLM(hf.DebertaConfig(**RELATIVE, talking_head=True))
    with pytest.raises(UserError, match=r"^'deberta.encoder.layer.0.attention.self.head_logits_proj' mixes the heads"):
        check_prunable(LanguageModel.of(mixed), Group.ATTENTION)


def test_what_is_compressed_narrows_no_more():
    lm = BY_NAME["bert-classifier"].lm()
    (site,) = lm.sites(("*.1.intermediate.dense",))
    lm.replace(site, factors(site, 4))
    assert isinstance(lm.model.get_submodule(site.name), LowRank)
    check_prunable(lm, Group.ATTENTION)
    with pytest.raises(
        UserError, match=rf"^The layer '{site.name}' is compressed already; heads and channels must be removed"
    ):
        check_prunable(lm, Group.FFN)
    assert counts(lm, Group.FFN) == [INNER]
