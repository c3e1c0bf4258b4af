"""Mixtures whose experts are compressed: saved, loaded, made dense, and refused without laconic."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from laconic.calibrate import LayerStats
from laconic.errors import UserError
from laconic.formats.expert_stacks import stack_formats
from laconic.methods import Magnitude, Method, Rtn, Svd
from laconic.model import LanguageModel, load
from laconic.store import materialize, save
from laconic.store.expert_layers import find_expert_layers
from laconic.store.structure import describe, rebuild
from tests.architectures import BY_NAME, Architecture, alike, outputs
from tests.experts import MIXTURES

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")

FAMILIES = ("mixtral", "gpt-oss")
METHODS: dict[str, Method] = {"low-rank": Svd(rank=8), "codes": Rtn(bits=4), "sparse": Magnitude(sparsity=0.5)}


def compress_experts(lm: LanguageModel, method: Method, glob: str = "*experts*") -> list[str]:
    """Compress the stacks whose path matches; returns their paths."""
    units: dict[str, list[torch.Tensor]] = {}
    for site in lm.sites((glob,)):
        units.setdefault(site.unit, []).append(site.weight())
    for unit, weights in units.items():
        formats = (method.compress(weight.to(lm.dtype), LayerStats()) for weight in weights)
        lm.replace_stack(unit, stack_formats(formats, len(weights)))
    return list(units)


def mixture(name: str) -> LanguageModel:
    return Architecture(name, MIXTURES[name][0]).lm()


def compressed(name: str, method: Method) -> LanguageModel:
    lm = mixture(name)
    compress_experts(lm, method)
    return lm


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_is_the_same_after_loading(family: str, method: Method, tmp_path: Path):
    lm = compressed(family, method)
    save(lm, tmp_path / "model")
    again = load(str(tmp_path / "model"))
    assert equal(lm.model, again.model)
    assert alike(outputs(lm.model), outputs(again.model))
    # The user's own save, without a step of laconic.
    again.model.save_pretrained(tmp_path / "again")
    third = type(lm.model).from_pretrained(tmp_path / "again")
    assert equal(lm.model, third)


def test_stacks_are_stored_under_their_own_names(tmp_path: Path):
    lm = compressed("mixtral", Rtn(bits=4))
    save(lm, tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        codes = file.get_tensor("model.layers.0.mlp.experts.down_proj.codes")
        placeholder = file.get_tensor("model.layers.0.mlp.experts.down_proj")
    assert "model.layers.0.mlp.experts.gate_up_proj.scales" in names
    assert codes.dtype == torch.uint8
    assert codes.dim() == 2
    assert placeholder.numel() == 0
    stored = sum(stack.nbytes() for layer in find_expert_layers(lm.model).values() for stack in layer.stacks().values())
    dense = sum(weight.numel() for name, weight in mixture("mixtral").model.named_parameters() if "experts" in name)
    assert stored < dense


@pytest.mark.parametrize("family", FAMILIES)
def test_one_stack_may_stay_dense(family: str, tmp_path: Path):
    lm = mixture(family)
    units = compress_experts(lm, Svd(rank=8), "*layers.0*experts.down*")
    assert [unit.rpartition(".")[2] for unit in units] == ["down_proj"]
    kinds = {name: entry["kind"] for name, entry in describe(lm.model).items()}
    path = units[0].rpartition(".")[0]
    assert kinds == {path: "experts", units[0]: "low-rank-experts"}
    save(lm, tmp_path / "model")
    assert equal(lm.model, load(str(tmp_path / "model")).model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_copy_computes_the_same_and_is_stock(family: str, tmp_path: Path):
    lm = compressed(family, Rtn(bits=8))
    dense = materialize(lm.model)
    assert torch.allclose(outputs(dense), outputs(lm.model), atol=1e-5)
    dense.save_pretrained(tmp_path / "dense")
    plain = mixture(family).model
    plain.save_pretrained(tmp_path / "plain")

    def names(folder: str) -> list[str]:
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            return sorted(file.keys())

    assert names("dense") == names("plain")
    assert "quantization_config" not in dense.config.to_dict()
    assert equal(type(dense).from_pretrained(tmp_path / "dense"), dense)


def test_a_loaded_model_becomes_stock_again(tmp_path: Path):
    lm = compressed("mixtral", Rtn(bits=8))
    save(lm, tmp_path / "model")
    dense = materialize(load(str(tmp_path / "model")).model)
    dense.save_pretrained(tmp_path / "dense")
    with safe_open(tmp_path / "dense" / "model.safetensors", "pt") as file:
        assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in set(file.keys())


def test_the_base_model_of_a_saved_folder_loads(tmp_path: Path):
    lm = compressed("mixtral", Rtn(bits=4))
    save(lm, tmp_path / "model")
    base = hf.AutoModel.from_pretrained(tmp_path / "model")
    assert equal(base, lm.model.base_model)


def test_the_card_names_stacks(tmp_path: Path):
    save(compressed("mixtral", Rtn(bits=4)), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "experts.down_proj`" in card
    assert "| quantized-experts | 4 × 32 × 48 |" in card
    assert "import laconic" in card


def test_an_entry_that_fits_no_experts_is_an_error():
    model = Architecture("llama", BY_NAME["llama"].build).model()
    with pytest.raises(UserError, match="does not fit the LlamaMLP"):
        rebuild(model, {"model.layers.0.mlp": {"kind": "experts"}})


@pytest.mark.slow
def test_stock_transformers_refuses_the_folder(tmp_path: Path):
    save(compressed("mixtral", Svd(rank=8)), tmp_path / "model")
    code = f"import transformers as hf; hf.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'model')!r})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode
    assert "size" in found.stderr
