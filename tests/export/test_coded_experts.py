"""Quantized experts in compressed-tensors: each has its own matrices, which the package and transformers decode."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from laconic.compress.matrices import Compress
from laconic.errors import CheckpointNotice, Notice, UserError
from laconic.export import check_target, export
from laconic.export.coded_experts import expert_parts
from laconic.export.compressed_tensors.target import NAME
from laconic.formats import ExpertLayer
from laconic.formats.expert_layer import find_expert_stacks
from laconic.methods import Int8, Magnitude, Rtn, Svd
from laconic.model import LanguageModel
from laconic.model.loading import load
from laconic.model.mixture import experts_paths
from laconic.runtime.engine.vllm import Vllm
from laconic.runtime.engine.vllm_experts import cpu_experts_reason
from laconic.store import save
from tests.experts import MIXTURES as EVERY_MIXTURE
from tests.export.served_models import EXPERTS, MIXTURES, SCHEMES, compressed

pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")
pytest.importorskip("accelerate", reason="the package accelerate is not installed")

FOUR = Rtn(bits=4, group_size=32, symmetric=True)
pytestmark = pytest.mark.filterwarnings("ignore:.*(AMX instructions|reads experts beside):laconic.errors.Notice")


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(24).view(2, 12)).logits


def read(folder: Path) -> LanguageModel:
    with pytest.warns(CheckpointNotice, match="turned into numbers"):
        return load(str(folder))


@pytest.mark.parametrize("name", [name for name in EVERY_MIXTURE if name != "gpt-oss"])
def test_the_rows_of_a_file_are_those_that_transformers_writes(tmp_path: Path, name: str) -> None:
    model = EVERY_MIXTURE[name][0]()
    path = next(path for path, module in model.named_modules() if path.endswith(".experts"))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for stack, matrices in find_expert_stacks(model.get_submodule(path)).items():
        parts = expert_parts(model, path, stack)
        assert parts is not None and len(parts) == EXPERTS * (2 if stack == "gate_up_proj" else 1)
        for part in parts:
            assert torch.equal(stored[f"{part.path}.weight"], matrices.dense(part.expert)[part.rows])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_decoded_as_it_was_computed(tmp_path: Path, scheme: str) -> None:
    lm = compressed("qwen3-moe", (SCHEMES[scheme], "experts"))
    found = export(lm, NAME, tmp_path / "out").model
    assert found.agreement.error == 0 and found.scale_rounding == 0
    assert [each.count for each in found.layers.values()] == [2 * 3 * EXPERTS]
    loaded = read(tmp_path / "out").model
    for path, layer in lm.model.named_modules():
        if isinstance(layer, ExpertLayer):
            for name, stack in layer.stacks().items():
                matrices = torch.stack([stack.dense(number) for number in range(EXPERTS)])
                assert torch.equal(loaded.get_parameter(f"{path}.{name}"), matrices)


@pytest.mark.parametrize("name", MIXTURES)
def test_transformers_computes_the_same_logits_from_the_folder(tmp_path: Path, name: str) -> None:
    save(compressed(name, (FOUR, "blocks")), tmp_path / "small")
    lm = load(str(tmp_path / "small"))
    expected = logits(lm.model)
    export(lm, NAME, tmp_path / "out")
    assert config_of(tmp_path / "out")["ignore"][-1] == "lm_head"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)


def test_experts_and_other_layers_may_have_two_schemes(tmp_path: Path) -> None:
    lm = compressed("mixtral", (FOUR, "experts"), (Rtn(bits=8, group_size=64, symmetric=True), "attention"))
    expected = logits(lm.model)
    export(lm, NAME, tmp_path / "out")
    groups = config_of(tmp_path / "out")["config_groups"].values()
    assert sorted(len(group["targets"]) for group in groups) == [2, 8]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("methods", "label"),
    [
        ([(Rtn(bits=4, group_size=32), "experts")], "W4A16, groups of 32, asymmetric"),
        ([(Int8(), "experts")], "W8A8"),
        ([(FOUR, "attention")], "not quantized"),
    ],
)
def test_what_transformers_does_not_read_is_said(tmp_path: Path, methods: list[Any], label: str) -> None:
    lm = compressed("mixtral", *methods)
    with pytest.warns(Notice, match=f"are {label}.* transformers reads experts beside quantized layers only as"):
        export(lm, NAME, tmp_path / "out")
    with pytest.raises(RuntimeError, match="automatic conversion"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(("instructions", "is_said"), [(("amx_int8",), False), (("avx512_vnni",), True)])
def test_processors_on_which_vllm_has_no_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instructions: tuple[str, ...], is_said: bool
) -> None:
    monkeypatch.setattr("laconic.runtime.engine.vllm_experts.short_numbers", lambda: instructions)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lm = compressed("mixtral", (FOUR, "experts"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        export(lm, NAME, tmp_path / "out")
    assert any("AMX instructions" in str(each.message) for each in said) == is_said
    save(lm, tmp_path / "small")
    if is_said:
        with pytest.raises(UserError, match=r"only with AMX instructions.*; use the runtime llama.cpp or eager"):
            Vllm.find(tmp_path / "out")
    else:
        assert Vllm.find(tmp_path / "out") is not None
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert (cpu_experts_reason(config) is not None) == is_said
    export(compressed("mixtral", (FOUR, "attention")), NAME, tmp_path / "dense")
    assert Vllm.find(tmp_path / "dense") is not None


def test_experts_that_are_not_quantized_are_ignored(tmp_path: Path) -> None:
    lm = compressed("mixtral", (Svd(rank=8), "experts"), (FOUR, "attention"))
    export(lm, NAME, tmp_path / "out")
    patterns = [name for name in config_of(tmp_path / "out")["ignore"] if name.startswith("re:")]
    assert patterns == [f"re:model\\.layers\\.{block}\\.block_sparse_moe\\.experts[.].*" for block in range(2)]
    torch.testing.assert_close(logits(read(tmp_path / "out").model), logits(lm.model), rtol=1e-3, atol=1e-3)


def test_routers_are_ignored(tmp_path: Path) -> None:
    """vLLM has a linear layer for a router, and would look for its codes."""
    export(compressed("qwen3-moe", (FOUR, "attention")), NAME, tmp_path / "out")
    names = [name for name in config_of(tmp_path / "out")["ignore"] if not name.startswith("re:")]
    assert names == [*(f"model.layers.{block}.mlp.gate" for block in range(2)), "lm_head"]


@pytest.mark.parametrize(
    ("model", "methods", "sentence"),
    [
        ("mixtral", [(Rtn(bits=3), "experts")], r"has codes of 3 bits, and vLLM reads codes of 4 or 8 bits"),
        ("mixtral", [(Magnitude(sparsity=0.5), "experts")], r"The experts '.*' are stored as sparse-experts, which"),
        ("mixtral", [(FOUR, "*gate_up_proj*")], r"are quantized in 'gate_up_proj' and not in 'down_proj'"),
        (
            "mixtral",
            [(FOUR, "*gate_up_proj*"), (Int8(), "*down_proj*")],
            r"'.*0.w1' are W4A16.*read one scheme for all",
        ),
        ("mixtral", [(FOUR, "model.layers.0.*experts*"), (Int8(), "model.layers.1.*experts*")], r"read one scheme for"),
    ],
)
def test_what_engines_do_not_read_is_refused(model: str, methods: list[Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_target(NAME).check_model(compressed(model, *methods))


def test_experts_in_one_tensor_or_with_biases_are_refused() -> None:
    lm = LanguageModel.of(EVERY_MIXTURE["gpt-oss"][0]())
    Compress(method=Rtn(bits=4, group_size=32), targets=("experts",)).apply(lm, None)
    with pytest.raises(UserError, match=r"have biases"):
        check_target(NAME).check_model(lm)
    plain = EVERY_MIXTURE["gpt-oss"][0]()
    assert {expert_parts(plain, path, "down_proj") for path in experts_paths(plain)} == {None}


def test_a_gptq_checkpoint_has_no_experts() -> None:
    with pytest.raises(UserError, match=r"laconic writes none in the GPTQ format.*export to compressed-tensors"):
        check_target("gptq").check_model(compressed("mixtral", (FOUR, "blocks")))
