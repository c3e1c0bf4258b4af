"""Replacing a matrix changes that matrix and nothing else; ties end where they must and hold where they can."""

import pytest
import torch
from torch import nn

from laconic.formats import Format, LowRank, LowRankEmbedding
from laconic.model import LanguageModel
from tests.architectures import BY_NAME, EVERY_ARCHITECTURE, Architecture, compress_everything, factors, outputs

# Where each tied model has its embedding and its head.
TIED = {
    "bert-masked": ("bert.embeddings.word_embeddings", "cls.predictions.decoder"),
    "roberta-masked": ("roberta.embeddings.word_embeddings", "lm_head.decoder"),
    "distilbert-masked": ("distilbert.embeddings.word_embeddings", "vocab_projector"),
    "albert-masked": ("albert.embeddings.word_embeddings", "predictions.decoder"),
    "electra-masked": ("electra.embeddings.word_embeddings", "generator_lm_head"),
    "deberta-masked": ("deberta.embeddings.word_embeddings", "cls.predictions.decoder"),
    "deberta-v2-masked": ("deberta.embeddings.word_embeddings", "cls.predictions.decoder"),
    "longformer-masked": ("longformer.embeddings.word_embeddings", "lm_head.decoder"),
    "modernbert-masked": ("model.embeddings.tok_embeddings", "decoder"),
    "gpt2": ("transformer.wte", "lm_head"),
    "gpt-neo": ("transformer.wte", "lm_head"),
    "opt": ("model.decoder.embed_tokens", "lm_head"),
    "gemma": ("model.embed_tokens", "lm_head"),
    "llama-tied": ("model.embed_tokens", "lm_head"),
    "t5": ("shared", "lm_head"),
    "t5-gated": ("shared", "lm_head"),
    "bart": ("model.shared", "lm_head"),
    "bart-scaled": ("model.shared", "lm_head"),
    "marian": ("model.shared", "lm_head"),
    "led": ("led.shared", "lm_head"),
}
ALIASES = {
    "t5": ["shared", "encoder.embed_tokens", "decoder.embed_tokens"],
    "bart-scaled": ["model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"],
}


LOCAL_OF_THE_LAST_BLOCK = tuple(f"layer.1.attention.self.{name}" for name in ("query", "key", "value"))


def relative(after: torch.Tensor, before: torch.Tensor) -> float:
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize("architecture", EVERY_ARCHITECTURE, ids=lambda architecture: architecture.name)
def test_full_rank_everywhere_gives_the_dense_outputs(architecture: Architecture) -> None:
    dense = outputs(architecture.model())
    lm = compress_everything(architecture.lm())
    assert relative(outputs(lm.model), dense) < 1e-5
    # The other way round: a low rank is far from it, so the outputs did come through the factors.
    assert relative(outputs(compress_everything(architecture.lm(), rank=2).model), dense) > 0.1


@pytest.mark.parametrize("architecture", EVERY_ARCHITECTURE, ids=lambda architecture: architecture.name)
def test_every_single_site_counts(architecture: Architecture) -> None:
    dense = outputs(architecture.model())
    for number, site in enumerate(architecture.lm().sites(("*",))):
        if min(site.shape) == 1:
            continue
        lm = architecture.lm()
        same = lm.sites(("*",))[number]
        lm.replace(same, factors(same, rank=1))
        changed = relative(outputs(lm.model), dense)
        # The pooler of a plain encoder and the unused classifier input do not reach the first output; nor does what
        # only other tokens than the first read, once the first alone is left to be read.
        unread = architecture.name == "longformer-classifier" and site.name.endswith(LOCAL_OF_THE_LAST_BLOCK)
        assert changed > 1e-4 or "pooler" in site.name or unread, site.name


@pytest.mark.parametrize("name", TIED)
def test_a_replaced_head_leaves_the_embedding(name: str) -> None:
    lm = BY_NAME[name].lm()
    embedding, head = TIED[name]
    table = lm.model.get_parameter(f"{embedding}.weight").clone()
    site = lm.sites((head,))[0]
    assert lm.sites_to_untie([site]) == [head]
    lm.replace(site, factors(site, rank=4))
    assert torch.equal(lm.model.get_parameter(f"{embedding}.weight"), table)
    assert isinstance(lm.model.get_submodule(head), LowRank)
    assert not any(head in key for key in lm.model.all_tied_weights_keys)
    assert lm.sites_to_untie(lm.sites(("embedding",))) == []
    # Tying again, as transformers does after resizing and such, must not bring the old head back.
    after = outputs(lm.model)
    lm.model.tie_weights()
    assert torch.equal(outputs(lm.model), after)


@pytest.mark.parametrize("name", TIED)
def test_a_replaced_embedding_leaves_the_head(name: str) -> None:
    lm = BY_NAME[name].lm()
    embedding, head = TIED[name]
    weight = lm.model.get_parameter(f"{head}.weight").clone()
    site = lm.sites(("embedding",))[0]
    assert lm.sites_to_untie([site]) == [embedding]
    lm.replace(site, factors(site, rank=4))
    assert torch.equal(lm.model.get_parameter(f"{head}.weight"), weight)
    assert isinstance(lm.model.get_submodule(embedding), LowRankEmbedding)
    after = outputs(lm.model)
    lm.model.tie_weights()
    assert torch.equal(outputs(lm.model), after)


@pytest.mark.parametrize("name", ALIASES)
def test_aliases_of_an_embedding_become_one_format(name: str) -> None:
    lm = BY_NAME[name].lm()
    site = lm.sites(("embedding",))[0]
    assert list(site.names) == ALIASES[name]
    assert [place.reads for place in site.places][1:] == [("source",), ("target",)]
    lm.replace(site, factors(site, rank=4))
    modules = {id(lm.model.get_submodule(path)) for path in ALIASES[name]}
    assert len(modules) == 1


def test_a_blocks_matrices_are_tied_to_nothing() -> None:
    lm = BY_NAME["gpt2"].lm()
    assert lm.sites_to_untie(lm.sites(("blocks",))) == []


def test_masked_head_keeps_its_bias_apart() -> None:
    lm = BY_NAME["bert-masked"].lm()
    site = lm.sites(("cls.predictions.decoder",))[0]
    lm.replace(site, factors(site))
    layer = lm.model.get_submodule(site.name)
    assert isinstance(layer, Format)
    shared = lm.model.get_parameter("cls.predictions.bias")
    assert layer.bias is not None
    assert torch.equal(layer.bias, shared)
    assert layer.bias.data_ptr() != shared.data_ptr()


def test_memory_holds_what_is_stored() -> None:
    lm = BY_NAME["llama"].lm().with_dtype(torch.float16)
    compress_everything(lm, rank=4)
    for module in lm.model.modules():
        if isinstance(module, Format):
            for parameter in module.parameters():
                assert parameter.dtype == torch.float32
                assert torch.equal(parameter, parameter.half().float())


@pytest.mark.parametrize("training", [False, True])
def test_mode_and_neighbours_are_kept(training: bool) -> None:
    lm = LanguageModel.of(BY_NAME["bert-classifier"].model().train(training))
    site = lm.sites(("*.layer.0.output.dense",))[0]
    before = {name for name, _ in lm.model.named_parameters() if not name.startswith(site.name)}
    lm.replace(site, factors(site, rank=3))
    assert {name for name, _ in lm.model.named_parameters() if not name.startswith(site.name)} == before
    assert all(module.training == training for module in lm.model.modules())


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "t5-gated", "bart"])
def test_factors_are_compressed_again(name: str) -> None:
    dense = outputs(BY_NAME[name].model())
    lm = compress_everything(BY_NAME[name].lm())
    for site in lm.sites(("blocks",)):
        lm.replace(site, factors(site))
    assert any(isinstance(module.left, LowRank) for module in lm.model.modules() if isinstance(module, LowRank))
    assert not [m for m in lm.model.modules() if isinstance(m, LowRank) and isinstance(m.right, nn.Embedding)]
    assert relative(outputs(lm.model), dense) < 1e-5
