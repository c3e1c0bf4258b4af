"""What another library quantized is read as the numbers that its codes stand for, or refused by name."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from laconic.cli.main import status
from laconic.errors import CheckpointNotice, UserError
from laconic.model import check_model, load
from laconic.model.checkpoints.dense.float8 import scaled
from laconic.model.checkpoints.dense.mxfp4 import VALUES, decoded
from laconic.store import save
from tests.architectures import BY_NAME, outputs
from tests.model.checkpoints.absent import without
from tests.model.checkpoints.codes import awq_codes, gptq_codes, matrices, save_with_codes


def read(folder: Path, method: str) -> PreTrainedModel:
    with pytest.warns(CheckpointNotice, match=f"is quantized by '{method}': its codes are turned into numbers"):
        lm = load(str(folder))
    # What is saved is a plain model.
    save(lm, folder / "saved")
    config = json.loads((folder / "saved" / "config.json").read_text())
    assert "quantization_config" not in config
    again = load(str(folder / "saved"))
    assert again.dtype is lm.dtype
    rounded = {name: tensor.to(lm.dtype).float() for name, tensor in lm.model.state_dict().items()}
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in again.model.state_dict().items())
    return lm.model


@pytest.fixture(autouse=True)
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def load_again(folder: Path) -> PreTrainedModel:
    with pytest.warns(CheckpointNotice):
        return load(str(folder)).model


def has(model: PreTrainedModel, wanted: dict[str, Tensor]) -> bool:
    there = matrices(model)
    return bool(wanted) and all(torch.equal(there[name], matrix) for name, matrix in wanted.items())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("bits", "less", "shuffled"), [(4, 1, True), (4, 0, False), (8, 1, False), (2, 1, False)])
def test_gptq(tmp_path: Path, generator: torch.Generator, name: str, bits: int, less: int, shuffled: bool) -> None:
    model = BY_NAME[name].model().half()
    tensors, wanted = {}, {}
    for module, matrix in matrices(model).items():
        parts, wanted[module] = gptq_codes(matrix, bits, 16, generator, less=less, shuffled=shuffled)
        tensors |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    said = {"quant_method": "gptq", "bits": bits, "group_size": 16}
    save_with_codes(model, tmp_path, tensors, said if less else {**said, "checkpoint_format": "gptq_v2"})
    assert has(read(tmp_path, "gptq"), wanted)


def test_awq(tmp_path: Path, generator: torch.Generator) -> None:
    model = BY_NAME["qwen2"].model().half()
    tensors, wanted = {}, {}
    for module, matrix in matrices(model).items():
        parts, wanted[module] = awq_codes(matrix, 16, generator)
        tensors |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    said = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}
    save_with_codes(model, tmp_path, tensors, said)
    assert has(read(tmp_path, "awq"), wanted)


def test_awq_is_what_compressed_tensors_makes_of_it(generator: torch.Generator) -> None:
    convert = pytest.importorskip("compressed_tensors.entrypoints.convert.converters")
    parts, wanted = awq_codes(torch.empty(64, 32), 16, generator)
    theirs = convert.AutoAWQConverter(group_size=16).process({f"m.{name}": tensor for name, tensor in parts.items()})
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = helpers.unpack_from_int32(theirs["m.weight_packed"], 4, torch.Size((64, 32)))
    zeros = helpers.unpack_from_int32(theirs["m.weight_zero_point"], 4, torch.Size((64, 2)), packed_dim=0)
    scales = theirs["m.weight_scale"].float().repeat_interleave(16, 1)
    assert torch.equal((codes.float() - zeros.float().repeat_interleave(16, 1)) * scales, wanted)


@pytest.mark.parametrize("block", [[32, 16], None])
def test_float8(tmp_path: Path, generator: torch.Generator, block: list[int] | None) -> None:
    """Neither 48 rows nor 8 are a multiple of the 32 of a block: the last one is cut off."""
    model = BY_NAME["qwen3"].model().bfloat16()
    tensors, wanted = {}, {}
    for module, matrix in matrices(model).items():
        codes = matrix.to(torch.float8_e4m3fn)
        rows, columns = (-(-size // side) for size, side in zip(matrix.shape, block or matrix.shape, strict=True))
        scales = torch.rand(rows, columns, generator=generator) if block else torch.rand((), generator=generator)
        wanted[module] = torch.empty_like(matrix)
        for o in range(matrix.shape[0]):
            for i in range(matrix.shape[1]):
                scale = scales[o // block[0], i // block[1]] if block else scales
                wanted[module][o, i] = codes[o, i].float() * scale
        tensors |= {f"{module}.weight": codes, f"{module}.weight_scale_inv": scales}
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block, "fmt": "e4m3"}
    save_with_codes(model, tmp_path, tensors, said)
    assert has(read(tmp_path, "fp8"), wanted)


def test_float8_is_what_transformers_makes_of_it_where_blocks_are_whole(generator: torch.Generator) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes = torch.randn(256, 128, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 1, generator=generator)
    theirs: Any = Fp8Dequantize(None)
    assert torch.equal(theirs._dequantize_one(codes, scales, torch.float32), scaled(codes, scales, [128, 128]))


def test_mxfp4_is_what_transformers_makes_of_it(generator: torch.Generator) -> None:
    from transformers.integrations.mxfp4 import dequantize_convertops

    codes = torch.randint(256, (2, 6, 3, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(120, 134, (2, 6, 3), generator=generator, dtype=torch.uint8)
    theirs = dequantize_convertops(codes.clone(), scales.clone(), torch.float32)
    assert torch.equal(theirs, decoded(codes, scales).transpose(-1, -2))
    assert decoded(codes, scales)[1, 2, 33] == _one(int(codes[1, 2, 1, 0]) >> 4, int(scales[1, 2, 1]))


def _one(code: int, scale: int) -> float:
    return (-1) ** (code >> 3) * VALUES[code & 7] * 2.0 ** (scale - 127)


@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
def test_gpt_oss(tmp_path: Path, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    config = hf.GptOssConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=64,
        rope_parameters=None, layer_types=["full_attention"] * 2, pad_token_id=1, dtype="bfloat16",
    )  # fmt: skip
    model = hf.GptOssForCausalLM(config).bfloat16().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tensors, wanted = {}, {}
    for name, parameter in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inner, outer = parameter.shape
            codes = torch.randint(256, (experts, outer, inner // 32, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(120, 126, codes.shape[:3], generator=generator, dtype=torch.uint8)
            tensors |= {f"{name}_blocks": codes, f"{name}_scales": scales}
            wanted[name] = decoded(codes, scales).transpose(-1, -2)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in wanted}
    model.save_pretrained(tmp_path)
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({**kept, **tensors}, tmp_path / "model.safetensors", {"format": "pt"})
    said = json.loads((tmp_path / "config.json").read_text())
    said["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(said))
    there = load_again(tmp_path).state_dict()
    assert len(wanted) == 4 and all(torch.equal(there[name], matrix) for name, matrix in wanted.items())


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


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_a_quantized_model(tmp_path: Path, generator: torch.Generator) -> None:
    import peft

    model = BY_NAME["qwen2"].model()
    tensors, numbers = {}, {}
    for module, matrix in matrices(model).items():
        parts, numbers[module] = gptq_codes(matrix, 4, 16, generator, less=1, shuffled=False)
        tensors |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    save_with_codes(model, tmp_path / "base", tensors, {"quant_method": "gptq", "bits": 4, "group_size": 16})
    for module, matrix in numbers.items():
        model.get_submodule(module).weight.data = matrix
    beside: Any = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    for name, parameter in beside.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    beside.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    beside.save_pretrained(tmp_path / "adapter")
    merged = load_again(tmp_path / "adapter")
    assert torch.allclose(outputs(merged), outputs(beside.eval()), atol=1e-4)
    assert not torch.allclose(outputs(merged), outputs(model.eval()), atol=1e-2)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"quant_method": "hqq"}, r"is quantized by 'hqq', which laconic does not read \(it reads awq, bitsandbytes, "),
        ({"bits": 4}, "is quantized by 'an unnamed library', which laconic does not read"),
        (
            {"quant_method": "gptq", "bits": 3},
            "laconic does not read: it has 3 bits, and known are 2, 4 and 8",
        ),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "its checkpoint_format is 'marlin'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "its version is 'gemv', and known is gemm"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "its weight_block_size is 128"),
    ],
)
def test_refused_before_weights_are_read(tmp_path: Path, said: dict[str, object], sentence: str) -> None:
    save_with_codes(BY_NAME["llama"].model(), tmp_path, {}, said)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=sentence):
        check_model(str(tmp_path))


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({}, "of its tensors are missing"),
        ({"qweight": torch.zeros(4, 32, dtype=torch.int32)}, "is without qzeros and scales"),
        (
            {
                "qweight": torch.zeros(4, 32, dtype=torch.int32),
                "qzeros": torch.zeros(2, 4, dtype=torch.int32),
                "scales": torch.zeros(3, 32),
            },
            r"has codes of the shape \(32, 32\) and scales of \(3, 32\)",
        ),
    ],
)
def test_codes_that_do_not_fit(tmp_path: Path, parts: dict[str, Tensor], sentence: str) -> None:
    place = "model.layers.0.self_attn.q_proj"
    codes = {f"{place}.{name}": tensor for name, tensor in parts.items()} or {f"{place}.g_idx": torch.zeros(1)}
    save_with_codes(BY_NAME["llama"].model(), tmp_path, codes, {"quant_method": "gptq", "bits": 4})
    with (
        pytest.warns(CheckpointNotice),
        pytest.raises(UserError, match=sentence if parts else "is incomplete|1 of its tensors is missing"),
    ):
        load(str(tmp_path))


@pytest.mark.parametrize("method", ["compressed-tensors", "bitsandbytes", "torchao"])
def test_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    save_with_codes(BY_NAME["llama"].model(), tmp_path / "model", {}, {"quant_method": method})
    monkeypatch.setattr(sys, "path", [str(without(method, tmp_path / "site"))])
    for verb in ("inspect", "evaluate"):
        assert status([verb, str(tmp_path / "model")]) == 2
        said = capsys.readouterr().err
        assert (
            f"is quantized by '{method}', so it needs {method}, which is not installed: pip install '{method}>=" in said
        )
