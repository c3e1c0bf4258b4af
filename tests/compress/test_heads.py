"""Narrower heads: the best scores of their size, the same models otherwise, and a sentence where it cannot be."""

import pytest
import torch
from transformers import PreTrainedModel

from laconic.calibrate import Calibration
from laconic.compress import Compress, ShrinkHeads
from laconic.errors import UserError
from laconic.formats import LowRank
from laconic.methods import Svd
from laconic.model import ANATOMIES, LanguageModel, divergence, load, predict
from laconic.model.head_size import (
    HeadedAttention,
    HeadMaps,
    can_shrink,
    find_attentions,
    resize_heads,
    zero_padding_maps,
)
from tests.architectures import BY_NAME, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.headed import HEADED, RELATED, RIGID, SIZE

every_kind = pytest.mark.parametrize("name", (*HEADED, *RELATED))


def data_for(lm: LanguageModel, count: int = 6) -> Calibration:
    return Calibration(labelled_batches(lm, count))


def test_every_architecture_with_heads_is_tested():
    able = {name for anatomy in ANATOMIES if can_shrink(anatomy) for name in anatomy.model_types}
    assert able == {BY_NAME[name].model().config.model_type for name in (*HEADED, *RELATED)}


def scores_of(lm: LanguageModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """q^T k of every head of every attention, all queries of the batch with all its keys, (heads, queries, keys)."""
    seen: dict[str, torch.Tensor] = {}
    attentions = find_attentions(lm)

    def hook(name: str):
        return lambda _, args, output: seen.__setitem__(name, output.detach().double().flatten(0, -2))

    handles = [site.module.register_forward_hook(hook(site.name)) for a in attentions for site in a.inputs]
    with torch.no_grad():
        predict(lm, batch)
    for handle in handles:
        handle.remove()
    scores = {}
    for a in attentions:
        first, second = a.inputs[0].name, a.inputs[min(1, len(a.inputs) - 1)].name
        width = a.count * a.size
        q = seen[first][:, :width].unflatten(1, (a.count, a.size))
        k = (seen[second][:, width : 2 * width] if first == second else seen[second]).unflatten(1, (a.count, a.size))
        scores[a.name] = torch.einsum("ihd,jhd->hij", q, k)
    return scores


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "bart", "t5", "opt"])
@pytest.mark.parametrize("tokens", [40, 3])
def test_scores_are_the_best_that_the_size_allows(name, tokens):
    """Biases included; with 3 tokens of 8 dimensions every moment is singular."""
    lm = BY_NAME[name].lm()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (1, min(tokens, 30)), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if lm.model.config.is_encoder_decoder:
        batch["labels"] = torch.randint(3, 50, (1, 12), generator=generator)
    before = scores_of(lm, batch)
    first = find_attentions(lm)[0].name
    ShrinkHeads(size=SIZE).apply(lm, Calibration([batch]))
    # What the first attention reads is not changed by any other.
    after = scores_of(lm, batch)[first]
    for whole, narrow in zip(before[first], after, strict=True):
        least = torch.linalg.svdvals(whole)[SIZE:].norm()
        torch.testing.assert_close((whole - narrow).norm(), least, rtol=1e-3, atol=1e-5 * whole.norm().item())


@every_kind
def test_keeping_everything_changes_nothing(name):
    lm = BY_NAME[name].lm()
    before = outputs(lm.model)
    outcome = ShrinkHeads(keep=1.0).apply(lm, data_for(lm, 1))
    assert torch.equal(outputs(lm.model), before)
    assert outcome.nbytes == outcome.dense_nbytes


@every_kind
def test_dimensions_of_zeros_change_nothing(name):
    """The scale of the scores is that of the original size, whenever the class computes it."""
    lm = BY_NAME[name].lm()
    before = outputs(lm.model)
    for attention in find_attentions(lm):
        resize_heads(lm, attention, zero_padding_maps(attention, 2 * attention.size))
    torch.testing.assert_close(outputs(lm.model), before, rtol=1e-4, atol=1e-5)


@every_kind
def test_shapes_shrink_and_the_scale_stays(name):
    lm = BY_NAME[name].lm()
    numbers = sum(part.numel() for part in lm.model.parameters())
    scales = [vars(attention.module).get("scaling") for attention in find_attentions(lm)]
    whole = {attention.name: attention.size for attention in find_attentions(lm)}
    biases = sum(reader.bias.numel() for a in find_attentions(lm) for reader in a.readers() if reader.bias is not None)
    outcome = ShrinkHeads(keep=0.5, multiple=1).apply(lm, data_for(lm))
    assert 2 * outcome.nbytes == outcome.dense_nbytes
    now = sum(part.numel() for part in lm.model.parameters())
    assert 4 * (numbers - now - biases // 2) == outcome.dense_nbytes - outcome.nbytes
    attentions = find_attentions(lm)
    assert all(2 * attention.size == whole[attention.name] for attention in attentions)
    assert [vars(attention.module).get("scaling") for attention in attentions] == scales
    assert outputs(lm.model).isfinite().all()


@every_kind
def test_attention_implementations_agree(name):
    lm = BY_NAME[name].lm()
    ShrinkHeads(size=SIZE).apply(lm, data_for(lm))
    found = []
    for implementation in ("eager", "sdpa"):
        if implementation == "sdpa" and not lm.model._supports_sdpa:
            continue
        lm.model.set_attn_implementation(implementation)
        found.append(outputs(lm.model))
    torch.testing.assert_close(found[0], found[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt-neo", "t5", "bart", "marian"])
def test_generation_with_a_cache_is_that_without(name):
    lm = BY_NAME[name].lm()
    ShrinkHeads(size=SIZE).apply(lm, data_for(lm))
    model = lm.model
    assert isinstance(model, PreTrainedModel)
    tokens = torch.tensor([[5, 9, 7, 4]])
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    cached, plain = (model.generate(tokens, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("name", RIGID)
def test_heads_that_cannot_shrink_are_one_sentence(name):
    lm = BY_NAME[name].lm()
    with pytest.raises(
        UserError, match=r"^The heads of this '[\w-]+' cannot shrink, as .*; .* compress its matrices\.$"
    ):
        ShrinkHeads(keep=0.5).check(lm)


@pytest.mark.parametrize(
    ("name", "reason"), [("gpt-bigcode", "they share keys"), ("mpt", "its queries, keys and values are limited")]
)
def test_heads_of_one_model_may_be_unlike_those_of_its_architecture(name, reason):
    lm = BY_NAME[name].lm()
    if name == "mpt":
        lm.model.transformer.blocks[1].attn.clip_qkv = 6.0
    with pytest.raises(
        UserError, match=rf"^The heads of 'transformer\.\w+\.\d\.attn' in this .* cannot shrink, as {reason}; narrow"
    ):
        ShrinkHeads(keep=0.5).check(lm)


def test_what_is_compressed_shrinks_no_more():
    lm = BY_NAME["bert-classifier"].lm()
    Compress(method=Svd(rank=4), targets=("*.0.attention.self.key",)).apply(lm, None)
    with pytest.raises(UserError, match=r"'bert.encoder.layer.0.attention.self' is compressed already"):
        ShrinkHeads(keep=0.5).check(lm)


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "t5"])
def test_what_has_shrunk_can_be_compressed(name):
    lm = BY_NAME[name].lm()
    ShrinkHeads(size=SIZE).apply(lm, data_for(lm))
    outcome = Compress(method=Svd(multiple=1), keep=0.5).apply(lm, None)
    assert outcome.nbytes <= 0.5 * outcome.dense_nbytes
    assert any(isinstance(module, LowRank) for module in lm.model.modules())
    assert outputs(lm.model).isfinite().all()


@pytest.mark.parametrize(
    ("keep", "multiple", "size"), [(0.5, 1, 4), (0.7, 1, 5), (0.7, 4, 4), (0.4, 8, 3), (1.0, 3, 8), (0.01, 1, 1)]
)
def test_sizes_are_rounded_down(keep, multiple, size):
    lm = BY_NAME["bert-base"].lm()
    ShrinkHeads(keep=keep, multiple=multiple).apply(lm, data_for(lm, 1))
    assert {attention.size for attention in find_attentions(lm)} == {size}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "give either shrink-heads:keep=F with F in .0, 1., or shrink-heads:size=N"),
        ({"keep": 0.5, "size": 4}, "give either shrink-heads:keep=F with F in .0, 1., or shrink-heads:size=N"),
        ({"keep": 1.5}, r"keep must be in \(0, 1\]; got 1.5"),
        ({"size": 9}, r"size must be in \[1, 8\], the size of the heads of 'encoder.layer.0.attention.self'; got 9"),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        ShrinkHeads(**arguments).check(BY_NAME["bert-base"].lm())


def test_missing_data_is_one_sentence():
    with pytest.raises(UserError, match="'shrink-heads' needs calibration data"):
        ShrinkHeads(keep=0.5).apply(BY_NAME["gpt2"].lm(), None)


def test_half_precision_is_rounded_as_it_is_stored():
    lm = BY_NAME["bert-classifier"].lm().with_dtype(torch.float16)
    ShrinkHeads(size=SIZE).apply(lm, data_for(lm))
    weight = find_attentions(lm)[0].inputs[0].weight()
    assert weight.dtype == torch.float32 and torch.equal(weight.half().float(), weight)


def drop_at_random(attention: HeadedAttention, size: int, generator: torch.Generator) -> HeadMaps:
    """The same random dimensions of every query and key, and others of every value and context."""

    def chosen() -> torch.Tensor:
        rows = torch.randperm(attention.size, generator=generator)[:size]
        return torch.eye(attention.size)[rows]

    scores = torch.stack([chosen() for _ in range(attention.count)])
    values = torch.stack([chosen() for _ in range(attention.count)])
    return HeadMaps(query=scores, key=scores, value=values, output=values.mT)


@pytest.mark.slow
def test_a_real_model_hardly_notices(shared_models, shared_data, monkeypatch):
    from laconic.calibrate.sources import read
    from laconic.progress import silent
    from laconic.recipe.sampling import Sampling

    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    source = str(shared_models / "minilm-sst2")
    ours, random = load(source), load(source)
    calibration = Sampling(samples=128).of(ours, read("glue/sst2", "train"), silent)
    judges = Sampling(samples=128, seed=1).of(ours, read("glue/sst2", "dev"), silent).batches
    with torch.no_grad():
        dense = [predict(ours, batch)[0] for batch in judges]
        ShrinkHeads(size=24).apply(ours, calibration)
        generator = torch.Generator().manual_seed(0)
        for attention in find_attentions(random):
            resize_heads(random, attention, drop_at_random(attention, 24, generator))

        def kl(lm: LanguageModel) -> float:
            now = [predict(lm, batch)[0] for batch in judges]
            return torch.cat([divergence(a, b) for a, b in zip(dense, now, strict=True)]).mean().item()

        assert kl(ours) < 0.1 * kl(random)
        assert kl(ours) < 0.02
