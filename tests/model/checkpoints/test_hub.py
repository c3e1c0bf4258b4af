"""Names on the hub, from its cache: pickles, adapters with their models, and revisions."""

import json
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from laconic.errors import UserError
from laconic.model import check_model, load
from laconic.model.checkpoints import Stored
from laconic.model.checkpoints.location import Location
from laconic.model.loading import load_config
from tests.architectures import BY_NAME, outputs
from tests.model.checkpoints.hub import put


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_pickles_alone(cache: Path, tmp_path: Path) -> None:
    model = BY_NAME["gpt2"].model()
    model.save_pretrained(tmp_path / "model")
    torch.save(load_file(tmp_path / "model" / "model.safetensors"), tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    put(tmp_path / "model", "owner/model", cache)
    lm = load("owner/model")
    assert torch.equal(outputs(lm.model), outputs(model))
    assert (lm.source, lm.model.config.name_or_path) == ("owner/model", "owner/model")


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_an_adapter_is_merged_into_the_revision_that_it_names(cache: Path, tmp_path: Path) -> None:
    old, new = BY_NAME["qwen2"].model(seed=0), BY_NAME["qwen2"].model(seed=1)
    for name, model in (("old", old), ("new", new)):
        model.save_pretrained(tmp_path / name)
    put(tmp_path / "old", "owner/base", cache, "a" * 40, "v1")
    put(tmp_path / "new", "owner/base", cache, "b" * 40, "main")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], revision="v1")
    adapter = peft.get_peft_model(old, config)
    adapter.peft_config["default"].base_model_name_or_path = "owner/base"
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapter.save_pretrained(tmp_path / "adapter")
    put(tmp_path / "adapter", "owner/adapter", cache)
    for source in ("owner/adapter", str(tmp_path / "adapter")):
        assert torch.allclose(outputs(load(source).model), outputs(adapter), atol=1e-5)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**said, "revision": None}))
    assert not torch.allclose(outputs(load(str(tmp_path / "adapter")).model), outputs(adapter), atol=1e-2)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**said, "revision": "v9"}))
    with pytest.raises(UserError, match="There is no loadable model 'owner/base'"):
        check_model(str(tmp_path / "adapter"))


def test_what_lies_in_the_cache_is_checked_before_it_is_loaded(cache: Path, tmp_path: Path) -> None:
    model = BY_NAME["gpt2"].model()
    model.save_pretrained(tmp_path / "model")
    put(tmp_path / "model", "owner/model", cache)
    file = next(cache.glob("*/snapshots/*/model.safetensors"))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"of 'owner/model' cannot be loaded: the file 'model\.safetensors' is"):
        check_model("owner/model")
    file.unlink()
    # The hub is not asked, so that nothing can be fetched.
    with pytest.raises(UserError, match=r"The weights of 'owner/model' cannot be loaded: there is no file named"):
        check_model("owner/model")


def test_shards_of_which_some_are_still_to_be_fetched(cache: Path, tmp_path: Path) -> None:
    """As a download that was stopped leaves them."""
    BY_NAME["gpt2"].model().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    put(tmp_path / "model", "owner/model", cache)
    shards = sorted(cache.glob("*/snapshots/*/model-*.safetensors"))
    shards[-1].unlink()
    Stored(location=Location("owner/model")).check(load_config("owner/model"))
    # Here the hub cannot be asked.
    with pytest.raises(UserError, match=f"names the file '{shards[-1].name}', which is not there; fetch the missing"):
        check_model("owner/model")
    (tmp_path / "model" / shards[-1].name).unlink()
    with pytest.raises(UserError, match=f"names the file '{shards[-1].name}', which is not there; fetch the missing"):
        check_model(str(tmp_path / "model"))


def test_code_in_a_repository(cache: Path, tmp_path: Path) -> None:
    model = BY_NAME["gpt2"].model()
    model.save_pretrained(tmp_path / "model")
    save_file(dict(load_file(tmp_path / "model" / "model.safetensors")), tmp_path / "model" / "model.safetensors")
    said = json.loads((tmp_path / "model" / "config.json").read_text())
    said |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(said))
    put(tmp_path / "model", "owner/model", cache)
    with pytest.raises(UserError, match=r"The model 'owner/model' needs custom code, .*own\.OwnConfig"):
        check_model("owner/model")
