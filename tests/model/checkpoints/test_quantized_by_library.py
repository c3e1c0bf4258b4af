"""Quantized models as their own library writes and decodes them: compressed-tensors, bitsandbytes, torchao."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from laconic.cli.main import status
from laconic.model.checkpoints.quantized.compressed import COMPRESSED
from laconic.model.checkpoints.quantized.readers import UnreadableError
from tests.architectures import BY_NAME
from tests.model.checkpoints.absent import hide
from tests.model.checkpoints.codes import matrices, save_with_codes
from tests.model.checkpoints.reading import has, read


def test_compressed_tensors_with_a_scheme_for_each_group(tmp_path: Path) -> None:
    """4 bits for attention, 8 for the feed-forward: what transformers reads by the first scheme alone."""
    ct = pytest.importorskip("compressed_tensors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    model = BY_NAME["llama"].model().bfloat16()
    four = quantization.QuantizationArgs(num_bits=4, strategy="group", group_size=16, symmetric=False)
    eight = quantization.QuantizationArgs(num_bits=8, strategy="channel")
    scheme = quantization.QuantizationScheme
    groups = {
        "first": scheme(targets=["re:.*self_attn.*"], weights=four, format="pack-quantized"),
        "second": scheme(targets=["re:.*mlp.*"], weights=eight, format="pack-quantized"),
    }
    config = quantization.QuantizationConfig(config_groups=groups, ignore=["lm_head"], format="pack-quantized")
    wanted = _quantize(model, config, quantization)
    compressor = ct.compressors.ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(str(tmp_path))
    there = matrices(read(tmp_path, "compressed-tensors"))
    # fake_quantize rounds to the dtype of the weight.
    assert all(torch.equal(there[name].bfloat16(), matrix) for name, matrix in wanted.items())
    assert any("mlp" in name for name in wanted) and any("self_attn" in name for name in wanted)


def _quantize(model: Any, config: Any, quantization: Any) -> dict[str, Tensor]:
    """Give every layer of a scheme its scales; what the library itself rounds each matrix to."""
    utils = pytest.importorskip("compressed_tensors.quantization.utils")
    quantization.apply_quantization_config(model, config)
    found = {}
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None or scheme.weights is None:
            continue
        blocks = module.weight.data.unflatten(1, (-1, scheme.weights.group_size or module.in_features))
        scale, zero = utils.calculate_qparams(blocks.amin(-1), blocks.amax(-1), scheme.weights)
        module.weight_scale.data = scale.to(module.weight_scale.dtype)
        zero = zero if "weight_zero_point" in module._parameters else None
        if zero is not None:
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
        found[name] = quantization.fake_quantize(module.weight.data, module.weight_scale, zero, scheme.weights)
    return found


BNB = {
    "nf4, twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", BNB)
def test_bitsandbytes(tmp_path: Path, kind: str, name: str) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = BY_NAME[name].model().half()
    model.save_pretrained(tmp_path / "plain")
    quantized = type(model).from_pretrained(
        tmp_path / "plain", quantization_config=hf.BitsAndBytesConfig(**BNB[kind]), dtype=torch.float16
    )
    quantized.save_pretrained(tmp_path / "codes")
    wanted = {}
    for module_name, module in quantized.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            wanted[module_name] = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        elif isinstance(module, bnb.nn.Linear8bitLt):
            wanted[module_name] = bnb.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB).float()
    assert has(read(tmp_path / "codes", "bitsandbytes"), wanted)


@pytest.mark.filterwarnings("ignore")
def test_torchao(tmp_path: Path) -> None:
    ao = pytest.importorskip("torchao.quantization")
    model = BY_NAME["llama"].model().bfloat16()
    model.save_pretrained(tmp_path / "plain")
    how = hf.TorchAoConfig(ao.Int8WeightOnlyConfig(version=2))
    quantized: Any = type(model).from_pretrained(tmp_path / "plain", quantization_config=how)
    quantized.save_pretrained(tmp_path / "codes")
    wanted = {name: quantized.get_parameter(f"{name}.weight").dequantize().float() for name in matrices(model)}
    assert not has(model, wanted)
    assert has(read(tmp_path / "codes", "torchao"), wanted)


@pytest.mark.parametrize("method", ["compressed-tensors", "torchao"])
def test_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    save_with_codes(BY_NAME["llama"].model(), tmp_path / "model", {}, {"quant_method": method})
    hide(monkeypatch, method)
    for verb in ("inspect", "evaluate"):
        assert status([verb, str(tmp_path / "model")]) == 2
        said = capsys.readouterr().err
        assert (
            f"is quantized by '{method}', so it needs {method}, which is not installed: pip install '{method}>=" in said
        )


def transformed(*places: str) -> dict[str, Any]:
    apply = [{"targets": ["Linear"], "location": place} for place in places]
    return {"config_groups": {"R1": {"type": "hadamard", "apply": apply}}}


@pytest.mark.parametrize("transforms", [transformed("weight_input", "input"), transformed("k_cache"), {"R1": []}])
def test_transforms_of_activations_are_refused(transforms: dict[str, Any]) -> None:
    with pytest.raises(UnreadableError, match=r"^its transform_config is \{"):
        COMPRESSED.check({"transform_config": transforms})


@pytest.mark.parametrize("transforms", [None, {}, {"config_groups": {}}, transformed("weight_input", "weight_output")])
def test_transforms_that_lie_in_the_weights_are_no_obstacle(transforms: dict[str, Any] | None) -> None:
    COMPRESSED.check({"transform_config": transforms})
