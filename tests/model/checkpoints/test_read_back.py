"""Models of other libraries as they are: their codes in laconic's layers, and the bytes of their own files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from laconic.cli.main import status
from laconic.errors import CheckpointNotice
from laconic.formats import DynamicInt8, GgmlBlocks, PackedCodes, Quantized
from laconic.model import LanguageModel, load
from laconic.store import save
from tests.architectures import BY_NAME, outputs
from tests.evaluate.models import with_tokenizer
from tests.export.served_models import MODELS
from tests.model.checkpoints.codes import (
    awq_codes,
    compressed_codes,
    gptq_codes,
    int8_codes,
    matrices,
    nf4_codes,
    save_with_codes,
)

Codes = Callable[[Tensor, torch.Generator], tuple[dict[str, Tensor], Tensor]]


def _compressed(layout: str, *groups: dict[str, Any]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"],
        "config_groups": {f"group_{k}": {"targets": ["Linear"], **group} for k, group in enumerate(groups)},
    }  # fmt: skip


def _int8(weight: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    codes = torch.randint(-128, 128, weight.shape, generator=generator, dtype=torch.int8)
    # Large enough that 16 bits hold them.
    scales = (0.001 + torch.rand(len(weight), 1, generator=generator) * 0.01).bfloat16()
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales.float()


def _three_bits(weight: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Codes of three bits, some of which lie in two words."""
    outputs, inputs = weight.shape
    codes = torch.randint(8, (outputs, inputs), generator=generator)
    zeros = torch.randint(8, (inputs // 32, outputs), generator=generator)
    scales = (torch.rand(inputs // 32, outputs, generator=generator) * 0.1).half()
    group = torch.arange(inputs) // 32
    tensors = {"qweight": _stream(codes).T.contiguous(), "qzeros": _stream(zeros), "scales": scales}
    return tensors, ((codes.T - zeros[group]) * scales.float()[group]).T.contiguous()


def _stream(integers: Tensor) -> Tensor:
    """Integers of three bits in words of 32, one bit after the other; the last word is filled up."""
    rows = []
    for row in integers.tolist():
        whole = sum(integer << (3 * place) for place, integer in enumerate(row))
        words = [whole >> (32 * k) & 0xFFFFFFFF for k in range(-(-3 * len(row) // 32))]
        rows.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


ROUNDED = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FORMATS: dict[str, tuple[Codes, dict[str, Any], type[PackedCodes] | None]] = {
    "gptq": (
        lambda weight, generator: gptq_codes(weight, 4, 16, generator, less=1, shuffled=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 16},
        Quantized,
    ),
    "gptq, 3 bits": (
        _three_bits,
        {"quant_method": "gptq", "bits": 3, "group_size": 32, "checkpoint_format": "gptq_v2"},
        Quantized,
    ),
    "gptq, other order": (
        lambda weight, generator: gptq_codes(weight, 4, 16, generator, less=1, shuffled=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True},
        None,
    ),
    "awq": (
        lambda weight, generator: awq_codes(weight, 16, generator),
        {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"},
        Quantized,
    ),
    "W4A16": (
        lambda weight, generator: compressed_codes(weight, 4, 16, generator, symmetric=False),
        _compressed("pack-quantized", {"weights": {"num_bits": 4, "strategy": "group"}}),
        Quantized,
    ),
    "W8A16": (
        lambda weight, generator: compressed_codes(weight, 8, 16, generator, symmetric=True),
        _compressed("pack-quantized", {"weights": {"num_bits": 8, "strategy": "group"}}),
        Quantized,
    ),
    "W8A8": (
        _int8,
        _compressed("int-quantized", {"weights": {"num_bits": 8}, "input_activations": ROUNDED}),
        DynamicInt8,
    ),
    "int8 weights": (_int8, _compressed("int-quantized", {"weights": {"num_bits": 8}}), Quantized),
    "nf4": (
        lambda weight, generator: nf4_codes(weight, generator, twice=False),
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        None,
    ),
    "nf4, twice": (
        lambda weight, generator: nf4_codes(weight, generator, twice=True),
        {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        None,
    ),
    "LLM.int8": (int8_codes, {"quant_method": "bitsandbytes", "load_in_8bit": True}, None),
}
"""For each layout, what makes its tensors, its `quantization_config`, and the layers that keep its codes."""


def saved(folder: Path, layout: str, name: str = "llama") -> dict[str, Tensor]:
    """Save a model in a layout; the matrices that its codes stand for."""
    make, said, _ = FORMATS[layout]
    generator = torch.Generator().manual_seed(0)
    # Streams of three bits end at the end of a word in matrices of these widths.
    model = (MODELS[name]() if layout == "gptq, 3 bits" else BY_NAME[name].model()).bfloat16().eval()
    tensors, wanted = {}, {}
    for module, matrix in matrices(model).items():
        parts, wanted[module] = make(matrix, generator)
        tensors |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    save_with_codes(model, folder, tensors, said)
    return wanted


@pytest.mark.filterwarnings("ignore::laconic.errors.CheckpointNotice")
@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("layout", FORMATS)
def test_codes_are_kept_where_laconic_has_them(tmp_path: Path, layout: str, name: str) -> None:
    wanted = saved(tmp_path, layout, name)
    lm, dense = load(str(tmp_path), packed=True), load(str(tmp_path))
    kept = FORMATS[layout][2]
    for path, matrix in wanted.items():
        layer, plain = lm.model.get_submodule(path), dense.model.get_submodule(path)
        assert torch.equal(plain.get_parameter("weight"), matrix)
        assert type(layer) is (kept or nn.Linear)
        assert torch.equal(layer.dense() if isinstance(layer, PackedCodes) else layer.get_parameter("weight"), matrix)
    if kept is not DynamicInt8:
        # It rounds its inputs.
        torch.testing.assert_close(outputs(lm.model), outputs(dense.model), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::laconic.errors.CheckpointNotice")
@pytest.mark.parametrize("layout", FORMATS)
def test_bytes_are_those_of_the_files(tmp_path: Path, layout: str) -> None:
    saved(tmp_path, layout)
    lm = load(str(tmp_path), packed=True)
    file = tmp_path / "model.safetensors"
    assert lm.size()[1] == file.stat().st_size
    site = next(site for site in lm.sites() if site.name.endswith("down_proj"))
    own = [tensor.nbytes for name, tensor in load_file(file).items() if name.startswith(f"{site.name}.")]
    assert lm.site_nbytes(site) == sum(own)


def test_codes_that_become_numbers_are_told(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    saved(tmp_path / "kept", "gptq")
    load(str(tmp_path / "kept"), packed=True)
    assert not [warning for warning in recwarn if issubclass(warning.category, CheckpointNotice)]
    saved(tmp_path / "lost", "nf4")
    with pytest.warns(CheckpointNotice, match="is quantized by 'bitsandbytes': its codes are turned into numbers"):
        load(str(tmp_path / "lost"), packed=True)


def test_a_peer_and_its_original_in_one_table(tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = with_tokenizer("llama")
    save(lm, tmp_path / "original")
    parts, changed = {}, {}
    generator = torch.Generator().manual_seed(0)
    for module, matrix in matrices(lm.model).items():
        found, changed[module] = gptq_codes(matrix, 4, 16, generator, less=1, shuffled=False)
        parts |= {f"{module}.{part}": tensor for part, tensor in found.items()}
    save_with_codes(lm.model, tmp_path / "peer", parts, FORMATS["gptq"][1])
    assert lm.tokenizer is not None
    lm.tokenizer.save_pretrained(tmp_path / "peer")
    named = ["evaluate", str(tmp_path / "peer"), "--against", str(tmp_path / "original"), "--length", "8"]
    assert status([*named, "--batch", "1", "--tasks", f"perplexity:{texts}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cost"]["bytes"] == (tmp_path / "peer" / "model.safetensors").stat().st_size
    assert found["cost"]["bytes"] < found["original"]["cost"]["bytes"]
    assert sum(found["cost"]["parts"].values()) == found["cost"]["bytes"]
    assert found["fidelity"]["kl"] > 0
    # The numbers that the codes stand for, as a plain model.
    for module, matrix in changed.items():
        lm.model.get_submodule(module).get_parameter("weight").data = matrix
    save(LanguageModel.of(lm.model, lm.tokenizer), tmp_path / "plain")
    assert status(["evaluate", str(tmp_path / "plain"), "--tasks", f"perplexity:{texts}", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)["results"][f"perplexity:{texts}"]["perplexity"]["value"]
    assert found["results"][f"perplexity:{texts}"]["perplexity"]["value"] == pytest.approx(plain, rel=1e-4)


def test_inspect_shows_the_bytes_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, "awq")
    assert status(["inspect", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(part["nbytes"] for part in found["parts"]) == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_blocks_of_a_gguf_file_are_kept(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("gguf")
    from tests.model.checkpoints.ggufs import Kind, numbers_in, write_llama

    file = tmp_path / "model.gguf"
    write_llama(file, Kind[kind])
    lm = load(str(file), packed=True)
    numbers = numbers_in(file)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.1.mlp.up_proj"):
        layer = lm.model.get_submodule(name)
        assert isinstance(layer, GgmlBlocks) and layer.blocks.name == kind.lower()
        assert torch.equal(layer.dense(), numbers[f"{name}.weight"])
    assert lm.size()[1] == file.stat().st_size
    site = next(site for site in lm.sites(("embedding",)))
    assert 0 < lm.site_nbytes(site) < site.shape[0] * site.shape[1] * 2
