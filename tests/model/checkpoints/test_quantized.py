"""The codes of models that another library quantized are decoded, or the library is refused by name."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from laconic.errors import CheckpointNotice, UserError
from laconic.model import check_model, load
from laconic.model.checkpoints.quantized.readers import (
    FLOAT8,
    VALUES,
    StoredTensors,
    UnreadableError,
    decode_mxfp4,
    scale_blocks,
)
from tests.architectures import BY_NAME, outputs
from tests.model.checkpoints.codes import awq_codes, gptq_codes, matrices, save_with_codes
from tests.model.checkpoints.reading import has, read


@pytest.fixture(autouse=True)
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def load_again(folder: Path) -> PreTrainedModel:
    with pytest.warns(CheckpointNotice):
        return load(str(folder)).model


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
    assert torch.equal(theirs._dequantize_one(codes, scales, torch.float32), scale_blocks(codes, scales, [128, 128]))


def test_float8_in_the_blocks_that_are_usual(generator: torch.Generator) -> None:
    codes = torch.randn(256, 128, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 1, generator=generator)
    held = StoredTensors({"m.weight": codes, "m.weight_scale_inv": scales})
    assert torch.equal(FLOAT8.dequantize(held, {})["m.weight"], scale_blocks(codes, scales, [128, 128]))


@pytest.mark.parametrize("scales", [torch.rand(4), torch.rand(4, 1), torch.rand(1, 4)])
def test_float8_scales_of_rows_or_of_columns(scales: Tensor) -> None:
    """The shape of the scales decides; a plain vector would fit both sides of a square matrix."""
    with pytest.raises(UnreadableError, match="there is no weight_block_size, and scales of the shape"):
        scale_blocks(torch.ones(4, 4).to(torch.float8_e4m3fn), scales, None)


def test_mxfp4_is_what_transformers_makes_of_it(generator: torch.Generator) -> None:
    from transformers.integrations.mxfp4 import dequantize_convertops

    codes = torch.randint(256, (2, 6, 3, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(120, 134, (2, 6, 3), generator=generator, dtype=torch.uint8)
    theirs = dequantize_convertops(codes.clone(), scales.clone(), torch.float32)
    assert torch.equal(theirs, decode_mxfp4(codes, scales).transpose(-1, -2))
    assert decode_mxfp4(codes, scales)[1, 2, 33] == _one(int(codes[1, 2, 1, 0]) >> 4, int(scales[1, 2, 1]))


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
            wanted[name] = decode_mxfp4(codes, scales).transpose(-1, -2)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in wanted}
    model.save_pretrained(tmp_path)
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({**kept, **tensors}, tmp_path / "model.safetensors", {"format": "pt"})
    said = json.loads((tmp_path / "config.json").read_text())
    said["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(said))
    there = load_again(tmp_path).state_dict()
    assert len(wanted) == 4 and all(torch.equal(there[name], matrix) for name, matrix in wanted.items())


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
            {"quant_method": "gptq", "bits": 5},
            "laconic does not read: its bits are 5, and known are 2, 3, 4 and 8",
        ),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "its checkpoint_format is 'marlin'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "its version is 'gemv', and known is gemm"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "its weight_block_size is 128"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, r"its weight_block_size is \[0, 128\], and known are"),
        ({"quant_method": "fp8", "weight_block_size": ["128", 128]}, r"its weight_block_size is \['128', 128\]"),
        ({"quant_method": "gptq", "bits": "4"}, "its bits are '4', and known are 2, 3, 4 and 8"),
    ],
)
def test_refused_before_weights_are_read(tmp_path: Path, said: dict[str, object], sentence: str) -> None:
    save_with_codes(BY_NAME["llama"].model(), tmp_path, {}, said)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=sentence):
        check_model(str(tmp_path))


def fitting(groups: int) -> dict[str, Tensor]:
    """Tensors of AutoGPTQ for a matrix of 32 × 32 in so many groups."""
    return {
        "qweight": torch.zeros(4, 32, dtype=torch.int32),
        "qzeros": torch.zeros(groups, 4, dtype=torch.int32),
        "scales": torch.zeros(groups, 32),
    }


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({}, "is incomplete|1 of its tensors is missing"),
        ({"qweight": torch.zeros(4, 32, dtype=torch.int32)}, "is without qzeros and scales"),
        (
            {
                "qweight": torch.zeros(4, 32, dtype=torch.int32),
                "qzeros": torch.zeros(2, 4, dtype=torch.int32),
                "scales": torch.zeros(3, 32),
            },
            r"has codes of the shape \(32, 32\) and scales of \(3, 32\)",
        ),
        (fitting(0), r"has codes of the shape \(32, 32\) and scales of \(0, 32\)"),
        (fitting(64), r"has codes of the shape \(32, 32\) and scales of \(64, 32\)"),
        (fitting(2) | {"qweight": torch.zeros(4, 32)}, r"q_proj\.qweight' is no matrix of int32"),
        (fitting(2) | {"g_idx": torch.zeros(1, dtype=torch.int32)}, r"a g_idx of the shape \(1,\) .* for 32 inputs"),
    ],
)
def test_codes_that_do_not_fit_are_told_by_their_headers(
    tmp_path: Path, parts: dict[str, Tensor], sentence: str
) -> None:
    save_one(tmp_path, parts or {"g_idx": torch.zeros(1)})
    with pytest.raises(UserError, match=sentence):
        check_model(str(tmp_path))


@pytest.mark.parametrize("said", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}])
def test_codes_that_are_declared_and_not_there(tmp_path: Path, said: dict[str, object]) -> None:
    save_with_codes(BY_NAME["llama"].model(), tmp_path, {}, said)
    with pytest.raises(
        UserError, match=f"quantized by '{said['quant_method']}', and its files hold no codes; take the"
    ):
        check_model(str(tmp_path))


def test_a_matrix_of_codes_has_the_shape_that_the_class_asks_for(tmp_path: Path) -> None:
    parts = fitting(2) | {"qweight": torch.zeros(8, 32, dtype=torch.int32)}
    save_one(tmp_path, parts)
    with pytest.raises(
        UserError, match=r"q_proj\.weight' has shape \(32, 64\) in the file and \(32, 32\) in the model"
    ):
        check_model(str(tmp_path))


@pytest.mark.parametrize("group", [2, -1])
def test_groups_that_there_are_no_scales_of_are_told_at_loading(tmp_path: Path, group: int) -> None:
    save_one(tmp_path, fitting(2) | {"g_idx": torch.full((32,), group)})
    check_model(str(tmp_path))
    with pytest.raises(UserError, match=f"has the groups {group} to {group} in its g_idx, and 2 scales"):
        load(str(tmp_path))


def save_one(folder: Path, parts: dict[str, Tensor]) -> None:
    """A Llama of which one matrix is `parts` of GPTQ's layout."""
    codes = {f"model.layers.0.self_attn.q_proj.{name}": tensor for name, tensor in parts.items()}
    save_with_codes(BY_NAME["llama"].model(), folder, codes, {"quant_method": "gptq", "bits": 4})
