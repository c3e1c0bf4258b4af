"""An adapter is merged into the model that it is of, and the merged model computes what both did side by side."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from laconic import compress
from laconic.cli.main import status
from laconic.errors import CheckpointNotice, UserError
from laconic.methods import Svd
from laconic.model import check_model, load, load_empty
from laconic.model.checkpoints.adapter import are_close
from laconic.store import save
from tests.architectures import BY_NAME
from tests.model.checkpoints.absent import hide
from tests.tokens import letters

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 3]])


def outputs(model: Any, **more: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, **more)[0]


def test_outputs_are_compared_where_they_are_numbers_too() -> None:
    before = torch.tensor([[1.0, -2.0, torch.inf]])
    assert are_close(before, before + torch.tensor([[0.0, 1e-4, 0.0]]))
    assert not are_close(before, before + torch.tensor([[0.0, 1e-2, 0.0]]))
    assert not are_close(before, torch.tensor([[torch.nan, -2.0, torch.inf]]))
    assert not are_close(before, before[:, :2])


def shaken(model: Any) -> Any:
    """Every tensor that an adapter trains, moved away from where it does nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def adapted(folder: Path, config: Any, name: str = "qwen2", base: PreTrainedModel | None = None) -> Tensor:
    """Save a base model and an adapter of it beside one another; what both compute."""
    model = BY_NAME[name].model() if base is None else base
    model.save_pretrained(folder / "base")
    beside = shaken(peft.get_peft_model(copy.deepcopy(model), config))
    beside.peft_config["default"].base_model_name_or_path = str(folder / "base")
    beside.save_pretrained(folder / "adapter")
    more = {"decoder_input_ids": TOKENS} if model.config.is_encoder_decoder else {}
    return outputs(beside, **more)


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def lora(**values: Any) -> peft.LoraConfig:
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **values)


EVERY: dict[str, Callable[[], Any]] = {
    "lora": lora,
    "rslora": lambda: lora(use_rslora=True, lora_alpha=3),
    "ranks and alphas": lambda: lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5}),
    "dora": lambda: lora(use_dora=True),
    "biases": lambda: lora(bias="all"),
    "head saved": lambda: lora(modules_to_save=["lm_head"]),
    "embedding saved": lambda: lora(modules_to_save=["embed_tokens"]),
    "head adapted": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"),
    "embedding adapted": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM"),
    "tokens": lambda: lora(trainable_token_indices=[5, 6]),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_is_merged_and_saved_as_a_plain_model(tmp_path: Path, kind: str, tied: bool) -> None:
    wanted = adapted(tmp_path, EVERY[kind](), "qwen2" if tied else "llama")
    lm = load(str(tmp_path / "adapter"))
    assert close(outputs(lm.model), wanted)
    assert len(load_empty(str(tmp_path / "adapter")).sites()) == len(lm.sites()) == 14
    save(lm, tmp_path / "saved")
    assert not [file.name for file in (tmp_path / "saved").iterdir() if "adapter" in file.name]
    assert close(outputs(load(str(tmp_path / "saved")).model), wanted)
    assert close(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), wanted)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_biases_of_adapters(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], lora_bias=True)
    wanted = adapted(tmp_path, config, "qwen2")
    assert close(outputs(load(str(tmp_path / "adapter")).model), wanted)
    # Its class has nowhere to keep a bias.
    adapted(tmp_path / "other", config, "llama")
    with pytest.raises(UserError, match=r"cannot be merged into its model: .* base layer has no bias"):
        load(str(tmp_path / "other" / "adapter"))


@pytest.mark.parametrize("name", ["bert-classifier", "roberta-masked", "gpt2", "bart", "t5"])
def test_architectures(tmp_path: Path, name: str) -> None:
    kinds = {"bert": ("SEQ_CLS", ["query"]), "roberta": (None, ["query"]), "gpt2": ("CAUSAL_LM", ["c_attn"]),
             "bart": ("SEQ_2_SEQ_LM", ["v_proj"]), "t5": ("SEQ_2_SEQ_LM", ["v"])}  # fmt: skip
    task, targets = kinds[name.partition("-")[0]]
    config = peft.LoraConfig(r=4, task_type=task, target_modules=targets, fan_in_fan_out=name == "gpt2")
    wanted = adapted(tmp_path, config, name)
    lm = load(str(tmp_path / "adapter"))
    more = {"decoder_input_ids": TOKENS} if lm.model.config.is_encoder_decoder else {}
    assert close(outputs(lm.model, **more), wanted)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_tokens_that_were_added(tmp_path: Path, name: str) -> None:
    model: Any = BY_NAME[name].model()
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(53, mean_resizing=False)
    beside = shaken(peft.get_peft_model(model, lora(modules_to_save=None)))
    model.get_input_embeddings().weight.data[50:] = torch.randn(3, 32)
    beside.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    beside.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    lm = load(str(tmp_path / "adapter"))
    assert lm.model.config.vocab_size == 53 == load_empty(str(tmp_path / "adapter")).model.config.vocab_size
    assert close(outputs(lm.model), outputs(beside))
    with torch.no_grad():
        added = torch.tensor([[50, 52]])
        assert close(lm.model(input_ids=added)[0], beside(input_ids=added)[0])


def test_pickled_adapters(tmp_path: Path) -> None:
    wanted = adapted(tmp_path, lora())
    beside = peft.PeftModel.from_pretrained(BY_NAME["qwen2"].model(), str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save(peft.get_peft_model_state_dict(beside), tmp_path / "adapter" / "adapter_model.bin")
    assert close(outputs(load(str(tmp_path / "adapter")).model), wanted)
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"the file 'adapter_model\.bin' is damaged or cut off"):
        check_model(str(tmp_path / "adapter"))


def test_paths_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = adapted(tmp_path, lora())
    said = tmp_path / "adapter" / "adapter_config.json"
    change(said, base_model_name_or_path="../base")
    assert close(outputs(load(str(tmp_path / "adapter")).model), wanted)
    change(said, base_model_name_or_path="base")
    with pytest.raises(UserError, match="There is no loadable model 'base'"):
        check_model(str(tmp_path / "adapter"))
    monkeypatch.chdir(tmp_path)
    assert close(outputs(load("adapter").model), wanted)
    change(said, base_model_name_or_path="/home/someone/else/base")
    with pytest.raises(UserError, match=r"was trained on the model '/home/someone/else/base', which does not exist"):
        check_model("adapter")
    for value in (None, "", 3):
        change(said, base_model_name_or_path=value)
        with pytest.raises(UserError, match="base_model_name_or_path must be a folder or a hub name"):
            check_model("adapter")
    change(said, base_model_name_or_path=str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="is an adapter itself; merge that first"):
        check_model("adapter")


def test_its_tokenizer_is_its_own_or_that_of_its_base(tmp_path: Path) -> None:
    adapted(tmp_path, lora())
    assert load(str(tmp_path / "adapter")).tokenizer is None
    letters("none").save_pretrained(tmp_path / "base")
    own = load(str(tmp_path / "adapter")).tokenizer
    assert own is not None and own("a")["input_ids"] == letters("none")("a")["input_ids"]
    letters("start").save_pretrained(tmp_path / "adapter")
    lm = load(str(tmp_path / "adapter"))
    assert lm.tokenizer is not None and lm.tokenizer("a")["input_ids"] == letters("start")("a")["input_ids"]
    save(lm, tmp_path / "saved")
    saved = load(str(tmp_path / "saved")).tokenizer
    assert saved is not None and saved("a")["input_ids"] == letters("start")("a")["input_ids"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_of_a_compressed_model(tmp_path: Path) -> None:
    model = compress(BY_NAME["qwen2"].model(), Svd(), keep=0.5).model
    config = peft.LoraConfig(r=2, target_modules=r".*q_proj\.(up|down|first|second|0|1).*|.*embed_tokens")
    wanted = adapted(tmp_path, config, base=model)
    assert close(outputs(load(str(tmp_path / "adapter")).model), wanted)


@pytest.mark.parametrize("with_peft", [True, False])
def test_a_model_with_an_adapter_beside_it_is_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_peft: bool
) -> None:
    changed = adapted(tmp_path, lora())
    plain = outputs(load(str(tmp_path / "base")).model)
    assert not close(changed, plain)
    for file in (tmp_path / "adapter").iterdir():
        shutil.copy(file, tmp_path / "base")
    if not with_peft:
        for module in (
            "transformers.modeling_utils",
            "transformers.integrations.peft",
            "transformers.models.auto.auto_factory",
        ):
            monkeypatch.setattr(f"{module}.is_peft_available", lambda *_: False, raising=False)
    with pytest.warns(
        CheckpointNotice, match="holds a model and an adapter for it: the model is read without the adapter"
    ):
        assert torch.equal(outputs(load(str(tmp_path / "base")).model), plain)


def test_kinds_that_change_no_matrix(tmp_path: Path) -> None:
    model = BY_NAME["qwen2"].model()
    model.save_pretrained(tmp_path / "base")
    beside = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    beside.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    beside.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        UserError, match="is of the kind PROMPT_TUNING, which changes no matrix, so it cannot be merged"
    ):
        check_model(str(tmp_path / "adapter"))
    change(tmp_path / "adapter" / "adapter_config.json", peft_type="OF_TOMORROW")
    with pytest.raises(UserError, match="OF_TOMORROW"):
        load(str(tmp_path / "adapter"))
    change(tmp_path / "adapter" / "adapter_config.json", peft_type="LORA", task_type="IMAGE_CLS")
    with pytest.raises(UserError, match="is for the task IMAGE_CLS, which is not supported"):
        check_model(str(tmp_path / "adapter"))


def test_blocks_that_share_their_matrices_cannot_be_merged(tmp_path: Path) -> None:
    adapted(tmp_path, lora(layer_replication=[(0, 2), (1, 2)]), "llama")
    with pytest.raises(UserError, match=r"cannot be merged into its model: .+; give a model without it"):
        load(str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"r": 8}, r"does not fit the model .*base': .*; use the model that it was trained on"),
        ({"target_modules": ["q_proj"]}, r"does not fit the model .*: \d+ of its tensors have no counterpart"),
        ({"target_modules": ["q_proj", "v_proj", "down_proj", "o_proj"]}, r"\d+ of its tensors have no counterpart"),
        ({"target_modules": ["nowhere"]}, "does not fit the model .*nowhere"),
        ({"target_modules": "["}, "does not fit the model .*: unterminated character set"),
        ({"of_tomorrow": 1}, r"was saved by a later peft than is installed: .*of_tomorrow"),
        ({"revision": 3}, "revision must be a branch, tag or commit; got 3"),
        ({"peft_type": None}, "peft_type must be the name of a kind of adapter; got None"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, values: dict[str, object], sentence: str) -> None:
    adapted(tmp_path, lora())
    change(tmp_path / "adapter" / "adapter_config.json", **values)
    with pytest.raises(UserError, match=sentence):
        load(str(tmp_path / "adapter"))


def test_without_its_tensors_or_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted(tmp_path, lora())
    with monkeypatch.context() as there:
        hide(there, "peft")
        assert status(["inspect", str(tmp_path / "adapter")]) == 2
        assert "needs peft, which is not installed: pip install 'laconic-lm[train]'." in capsys.readouterr().err
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors or adapter_model\.bin; use a complete one"):
        check_model(str(tmp_path / "adapter"))
