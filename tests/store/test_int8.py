"""Int8 layers on disk: they reload in another process, run on the same kernels, and take a byte for each weight."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from laconic.evaluate.cost import stored_bytes
from laconic.formats import DynamicInt8, PackedEmbedding
from laconic.methods import Int8
from laconic.model import LanguageModel
from laconic.store import file_bytes, materialize, save
from tests.architectures import BY_NAME, outputs
from tests.store.checkpoints import Checkpoint, in_half, job, saved_as
from tests.store.readers import in_fresh_process
from tests.store.test_pruned import pruned
from tests.store.test_quantized import quantized, wide


def int8(lm: LanguageModel, *targets: str) -> LanguageModel:
    return quantized(lm, targets, Int8())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    parent = tmp_path_factory.mktemp("int8")
    # Each is written as soon as it is made.
    return [
        *(saved_as(int8(BY_NAME[name].lm(), "*"), parent, f"{name}/all/float32") for name in ("gpt2", "t5", "llama")),
        saved_as(int8(BY_NAME["bert-masked"].lm(), "attention"), parent, "bert-masked/attention/float32"),
        saved_as(int8(BY_NAME["llama-tied"].lm(), "head"), parent, "llama-tied/head/float32"),
        saved_as(int8(BY_NAME["gpt2"].lm(), "embedding"), parent, "gpt2/embedding/float32"),
        saved_as(int8(BY_NAME["gpt2"].lm().with_dtype(torch.float16), "*"), parent, "gpt2/all/float16"),
        saved_as(int8(pruned(BY_NAME["t5"].lm(), ("*",)), "*"), parent, "t5/pruned/float32"),
        saved_as(int8(wide(), "blocks"), parent, "wide/all/float32"),
    ]


def test_fresh_process_gives_the_same_outputs(saved: list[Checkpoint], tmp_path: Path) -> None:
    jobs = [job(checkpoint, dtype="float32") for checkpoint in saved]
    in_float16 = [checkpoint for checkpoint in saved if checkpoint.lm.dtype == torch.float16]
    computed, complaints = in_fresh_process(
        jobs + [job(checkpoint) for checkpoint in in_float16], tmp_path, laconic=True
    )
    assert not complaints
    for checkpoint in saved:
        assert torch.equal(computed[f"{checkpoint.key}:{checkpoint.auto}:float32"], outputs(checkpoint.lm.model)), (
            checkpoint.key
        )
    for checkpoint in in_float16:
        key = f"{checkpoint.key}:{checkpoint.auto}:None"
        assert torch.equal(computed[key], in_half(checkpoint.lm.model)), checkpoint.key


def test_stock_transformers_refuses_the_folder(saved: list[Checkpoint], tmp_path: Path) -> None:
    _, complaints = in_fresh_process([job(saved[0])], tmp_path, laconic=False)
    assert "size" in complaints[f"{saved[0].key}:{saved[0].auto}:None"]


def test_the_bytes_are_those_that_were_said(saved: list[Checkpoint]) -> None:
    for checkpoint in saved:
        assert file_bytes(checkpoint.folder) == pytest.approx(stored_bytes(checkpoint.lm), rel=0.01), checkpoint.key


def test_a_weight_is_a_byte_and_an_output_has_two_more(tmp_path: Path) -> None:
    lm = int8(wide(), "blocks")
    save(lm, tmp_path / "small")
    shapes = [module.shape for module in lm.model.modules() if isinstance(module, DynamicInt8)]
    state = load_file(tmp_path / "small" / "model.safetensors")
    stored = sum(tensor.nbytes for tensor in state.values() if tensor.dtype == torch.uint8)
    assert shapes
    assert stored == sum(math.prod(shape) + 2 * shape[0] for shape in shapes)


def test_a_word_embedding_is_looked_up(saved: list[Checkpoint]) -> None:
    lm = next(checkpoint.lm for checkpoint in saved if checkpoint.key.startswith("gpt2/embedding"))
    assert any(isinstance(module, PackedEmbedding) for module in lm.model.modules())


def test_made_plain_it_computes_about_the_same(saved: list[Checkpoint]) -> None:
    lm = next(checkpoint.lm for checkpoint in saved if checkpoint.key.startswith("wide"))
    plain = materialize(lm.model)
    assert not any(isinstance(module, DynamicInt8) for module in plain.modules())
    torch.testing.assert_close(outputs(plain), outputs(lm.model), atol=0.05, rtol=0.05)
