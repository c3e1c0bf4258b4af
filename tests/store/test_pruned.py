"""Pruned layers on disk: every architecture reloads in another process to the last bit, in the bytes it claimed."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, BertConfig, BertForSequenceClassification

from laconic.evaluate.cost import measure_cost
from laconic.formats import Dense, Masked, Sparse
from laconic.model import LanguageModel, Site
from laconic.store import file_bytes, materialize, save
from tests.architectures import ARCHITECTURES, BY_NAME, alike, factors, outputs
from tests.store.checkpoints import (
    HALF,
    TIED,
    Checkpoint,
    check_bytes,
    check_refused_without_laconic,
    check_the_same_outputs,
    saved_as,
)

TWO_OF_FOUR = (2, 4)


def mask_for(site: Site, pattern: tuple[int, int] | None) -> Tensor:
    """Half of the weights at random; in every group of the pattern, where its size divides the inputs."""
    scores = torch.rand(site.shape, generator=torch.Generator().manual_seed(0))
    if pattern is None or site.shape[1] % pattern[1]:
        return scores > 0.5
    groups = scores.view(-1, pattern[1])
    chosen = groups.topk(pattern[0], dim=1).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, chosen, True).view(site.shape)


def pruned(lm: LanguageModel, targets: tuple[str, ...], pattern: tuple[int, int] | None = None) -> LanguageModel:
    for site in lm.sites(targets):
        mask = mask_for(site, pattern)
        lm.replace(site, Sparse.from_dense(torch.where(mask, site.weight().to(lm.dtype), 0), mask, pattern))
    return lm


def checkpoints(parent: Path) -> Iterator[Checkpoint]:
    for architecture in ARCHITECTURES:
        yield saved_as(pruned(architecture.lm(), ("blocks",)), parent, f"{architecture.name}/blocks/float32")
        yield saved_as(pruned(architecture.lm(), ("*",), TWO_OF_FOUR), parent, f"{architecture.name}/2-4/float32")
    for name in HALF:
        lm = BY_NAME[name].lm().with_dtype(torch.float16)
        yield saved_as(pruned(lm, ("*",), TWO_OF_FOUR), parent, f"{name}/2-4/float16")
    for name in TIED:
        for target in ("head", "embedding"):
            yield saved_as(pruned(BY_NAME[name].lm(), (target,)), parent, f"{name}/{target}/float32")
    for name in ("bert-classifier", "gpt2", "t5"):
        lm = BY_NAME[name].lm()
        for site in lm.sites(("blocks",)):
            lm.replace(site, factors(site, rank=8))
        yield saved_as(pruned(lm, ("blocks",)), parent, f"{name}/factors/float32")
    # Unlike Llama's, its configuration has no switch that gives these a bias.
    lm = BY_NAME["mistral"].lm()
    for site in lm.sites(("*.o_proj", "*.down_proj")):
        lm.replace(site, Dense.from_weight(site.weight()), torch.ones(site.shape[0]))
    yield saved_as(lm, parent, "mistral/biases/float32")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    return list(checkpoints(tmp_path_factory.mktemp("pruned")))


def test_fresh_process_gives_the_same_outputs(saved: list[Checkpoint], tmp_path: Path) -> None:
    check_the_same_outputs(saved, tmp_path)


def test_stock_transformers_refuses_every_folder(saved: list[Checkpoint], tmp_path: Path) -> None:
    check_refused_without_laconic(saved, tmp_path)


def test_the_bytes_are_those_that_were_said(saved: list[Checkpoint]) -> None:
    check_bytes(saved)


def wide() -> LanguageModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4
    )
    return LanguageModel.of(BertForSequenceClassification(config).eval())


@pytest.mark.parametrize(("pattern", "share"), [(None, 0.5 + 1 / 32), (TWO_OF_FOUR, 0.5 + 3 / 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_file_shrinks_as_the_layers_do(
    pattern: tuple[int, int] | None, share: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    lm = wide().with_dtype(dtype)
    save(lm, tmp_path / "dense")
    sites = lm.sites(("blocks",))
    before, dense = sum(lm.stored_nbytes(sites).values()), lm.size()
    sites = pruned(lm, ("blocks",), pattern).sites(("blocks",))
    after, kept = sum(lm.stored_nbytes(sites).values()), sum(int(site.support.sum()) for site in sites)
    if dtype is torch.float32:
        assert after / before == pytest.approx(share, rel=2e-3)
    save(lm, tmp_path / "pruned")
    saved = file_bytes(tmp_path / "dense") - file_bytes(tmp_path / "pruned")
    assert saved == pytest.approx(before - after, rel=0.01)
    assert file_bytes(tmp_path / "pruned") == pytest.approx(lm.size()[1], rel=0.01)
    assert dense[0] - lm.size()[0] == before // dtype.itemsize - kept
    cost = measure_cost(lm, batch_sizes=(1,), lengths=(8,))
    assert cost.parameters == lm.size()[0]
    assert cost.bytes == pytest.approx(file_bytes(tmp_path / "pruned"), rel=0.01)


@pytest.mark.parametrize("name", ["bert-masked", "gpt2", "albert-masked", "t5", "bart-scaled", "llama-tied"])
def test_materialized_it_is_stock_with_the_same_zeros(name: str) -> None:
    lm = pruned(BY_NAME[name].lm(), ("*",))
    dense = materialize(lm.model)
    assert not any(isinstance(module, Masked) for module in dense.modules())
    torch.testing.assert_close(outputs(dense), outputs(lm.model))
    # Embeddings that were one may be several then.
    there = {name: site for site in LanguageModel.of(dense).sites(("*",)) for name in site.names}
    for site in lm.sites(("*",)):
        again = [there[name] for name in site.names if name in there]
        assert again and site.support is not None
        assert not any(other.weight()[~site.support].any() for other in again), site.name


def test_what_is_loaded_is_pruned_and_trains_on(saved: list[Checkpoint], tmp_path: Path) -> None:
    checkpoint = next(c for c in saved if c.key == "bert-masked/2-4/float32")
    lm = LanguageModel.of(AutoModelForMaskedLM.from_pretrained(checkpoint.folder))
    masks = {site.name: site.support for site in checkpoint.lm.sites(("*",))}
    assert {site.name for site in lm.sites(("*",))} == set(masks)
    model = lm.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    tokens = torch.arange(3, 11)[None]
    for _ in range(2):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    for site in lm.sites(("*",)):
        mask = masks[site.name]
        assert mask is not None and site.support is not None and torch.equal(site.support, mask)
        assert not site.weight()[~mask].any()
    save(LanguageModel.of(model.eval()), tmp_path / "trained")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "trained")
    assert alike(outputs(again), outputs(model))
    assert not torch.equal(outputs(again), outputs(checkpoint.lm.model))


@pytest.mark.parametrize("name", ["bert-masked", "t5"])
def test_training_resumes_from_a_checkpoint(saved: list[Checkpoint], name: str) -> None:
    """As Trainer does: the file's tensors are given to a model that computes already."""
    checkpoint = next(checkpoint for checkpoint in saved if checkpoint.key == f"{name}/2-4/float32")
    model = copy.deepcopy(checkpoint.lm.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    result = model.load_state_dict(load_file(checkpoint.folder / "model.safetensors"), strict=False)
    assert not result.unexpected_keys
    assert alike(outputs(model), outputs(checkpoint.lm.model))
