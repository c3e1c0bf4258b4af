"""Quantized layers on disk: every architecture reloads in another process to the last bit, in the bytes it claimed."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from laconic.calibrate import AbsMean, Fisher, InputCovariance, LayerStats
from laconic.evaluate.cost import measure_cost
from laconic.formats import PackedCodes
from laconic.methods import Awq, KMeans, Method, Rtn
from laconic.model import LanguageModel
from laconic.store import file_bytes, materialize, save
from tests.architectures import ARCHITECTURES, BY_NAME, factors, outputs
from tests.store.checkpoints import (
    HALF,
    TIED,
    Checkpoint,
    check_bytes,
    check_refused_without_laconic,
    check_the_same_outputs,
    saved_as,
)
from tests.store.test_pruned import pruned


def quantized(lm: LanguageModel, targets: tuple[str, ...], *methods: Method) -> LanguageModel:
    """Every matrix by one of `methods`, in turn."""
    for site, method in zip(lm.sites(targets), itertools.cycle(methods), strict=False):
        alike = torch.ones(site.shape[1]).double()
        statistics = [
            Fisher.from_total(alike.expand(site.shape), 1),
            InputCovariance.from_moment(alike, 1),
            AbsMean.from_total(alike, 1),
        ]
        known = LayerStats(statistics, site.support)
        lm.replace(site, method.compress(site.weight().to(lm.dtype), known))
    return lm


FOUR = Rtn(bits=4, group_size=16, clip=False)
THREE = Rtn(bits=3, group_size=16, symmetric=True, clip=False)
TABLES = KMeans(bits=3, weights="fisher", refit=False)
SCALED = Awq(bits=4, group_size=16, gradients=False, clip=False)


def checkpoints(parent: Path) -> Iterator[Checkpoint]:
    for architecture in ARCHITECTURES:
        yield saved_as(
            quantized(architecture.lm(), ("*",), FOUR, TABLES, SCALED), parent, f"{architecture.name}/all/float32"
        )
    for name in HALF:
        lm = BY_NAME[name].lm().with_dtype(torch.float16)
        yield saved_as(quantized(lm, ("*",), THREE, TABLES), parent, f"{name}/all/float16")
    for name in TIED:
        for target in ("head", "embedding"):
            yield saved_as(quantized(BY_NAME[name].lm(), (target,), FOUR), parent, f"{name}/{target}/float32")
    for name in ("bert-classifier", "gpt2", "t5"):
        lm = BY_NAME[name].lm()
        for site in lm.sites(("blocks",)):
            lm.replace(site, factors(site, rank=8))
        yield saved_as(quantized(lm, ("blocks",), FOUR), parent, f"{name}/factors/float32")
        zeros = pruned(BY_NAME[name].lm(), ("*",))
        yield saved_as(quantized(zeros, ("*",), THREE, TABLES), parent, f"{name}/pruned/float32")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    return list(checkpoints(tmp_path_factory.mktemp("quantized")))


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


@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, "channel"), (4, 32), (5, 32), (8, "channel")])
def test_a_file_has_the_nominal_bits_and_the_scales(
    bits: int, group_size: int | Literal["channel"], tmp_path: Path
) -> None:
    lm = quantized(wide(), ("blocks",), Rtn(bits=bits, group_size=group_size, symmetric=True, clip=False))
    save(lm, tmp_path / "small")
    layers = [module for module in lm.model.modules() if isinstance(module, PackedCodes)]
    state = load_file(tmp_path / "small" / "model.safetensors")
    matrices = sum(tensor.nbytes for name, tensor in state.items() if tensor.dtype == torch.uint8)
    weights = sum(math.prod(layer.shape) for layer in layers)
    scales = sum(layer.shape[0] * (layer.shape[1] // 32 if group_size == 32 else 1) for layer in layers)
    assert matrices == weights * bits // 8 + 2 * scales
    assert sum(layer.nbytes() for layer in layers) == matrices
    assert lm.size()[0] == wide().size()[0]


def test_the_report_says_what_is_on_disk(tmp_path: Path) -> None:
    lm = quantized(wide(), ("blocks",), FOUR)
    save(lm, tmp_path / "small")
    cost = measure_cost(lm, batch_sizes=(1,), lengths=(8,))
    assert cost.parameters == wide().size()[0]
    assert cost.bytes == pytest.approx(file_bytes(tmp_path / "small"), rel=0.01)


def test_pruned_and_quantized_is_a_bit_each_and_the_codes_of_what_is_kept(tmp_path: Path) -> None:
    lm = quantized(pruned(wide(), ("blocks",)), ("blocks",), Rtn(bits=4, group_size="channel", symmetric=True))
    layers = [module for module in lm.model.modules() if isinstance(module, PackedCodes)]
    for layer in layers:
        mask = layer.support
        assert mask is not None
        expected = math.ceil(int(mask.sum()) / 2) + mask.numel() // 8 + 2 * layer.shape[0]
        assert layer.nbytes() == expected
        assert not layer.dense()[~mask].any()
    save(lm, tmp_path / "small")
    assert file_bytes(tmp_path / "small") == pytest.approx(lm.size()[1], rel=0.01)


def test_nothing_of_a_cast_reaches_codes_and_scales() -> None:
    lm = quantized(wide(), ("blocks",), FOUR)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items() if tensor.dtype == torch.uint8}
    lm.model.half().bfloat16().float()
    after = lm.model.state_dict()
    assert before
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_made_plain_it_computes_the_same(tmp_path: Path) -> None:
    lm = quantized(BY_NAME["gpt2"].lm(), ("*",), FOUR)
    plain = materialize(lm.model)
    assert not any(isinstance(module, PackedCodes) for module in plain.modules())
    torch.testing.assert_close(outputs(plain), outputs(lm.model))
    save(LanguageModel.of(plain), tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
