"""Fewer heads and channels on disk: stock checkpoints where the class can hold them, the same outputs everywhere."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

import laconic
from laconic.calibrate import Calibration
from laconic.compress import Compress, Narrow, ShrinkHeads
from laconic.errors import UserError
from laconic.methods import Svd
from laconic.model import LanguageModel, load
from laconic.model.prunable_group import prunable_groups
from laconic.model.task import find_auto_class
from laconic.store import file_bytes, materialize, save
from laconic.store.structure import describe
from tests.architectures import BY_NAME, batch_for, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.headed import HEADED
from tests.narrow import ONE_OF_EACH, STOCK, narrowed
from tests.store.checkpoints import Checkpoint, hidden, job, saved_as, unexpected
from tests.store.readers import in_fresh_process

assert laconic


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    found = []
    for name in ONE_OF_EACH:
        for uniform in (True, False):
            lm = narrowed(name, uniform)
            key = f"{name}/{'uniform' if uniform else 'mixed'}"
            found.append(saved_as(lm, tmp_path_factory.mktemp("narrow"), key))
    return found


def is_stock(checkpoint: Checkpoint) -> bool:
    return not describe(checkpoint.lm.model)


def test_fresh_process_gives_the_same_outputs(saved: list[Checkpoint], tmp_path: Path) -> None:
    jobs = [job(checkpoint) for checkpoint in saved]
    # Without its prefix in the structure, and without its head.
    bases = [checkpoint for checkpoint in saved if checkpoint.key in ("deberta-masked/mixed", "t5/mixed", "gpt2/mixed")]
    jobs += [job(checkpoint, "AutoModel") for checkpoint in bases]
    computed, complaints = in_fresh_process(jobs, tmp_path, laconic=True)
    assert not unexpected(complaints)
    for checkpoint in saved:
        assert torch.equal(computed[job(checkpoint)["key"]], outputs(checkpoint.lm.model)), checkpoint.key
    for checkpoint in bases:
        assert torch.equal(computed[job(checkpoint, "AutoModel")["key"]], hidden(checkpoint.lm.model)), checkpoint.key


def test_without_laconic_the_uniform_ones_load_where_their_class_can_hold_them(
    saved: list[Checkpoint], tmp_path: Path
) -> None:
    some = [checkpoint for checkpoint in saved if checkpoint.key.endswith("uniform") or checkpoint in saved[::7]]
    computed, complaints = in_fresh_process([job(checkpoint) for checkpoint in some], tmp_path, laconic=False)
    for checkpoint in some:
        key = job(checkpoint)["key"]
        if is_stock(checkpoint):
            assert key not in complaints or "embed_positions." in complaints[key]
            assert torch.equal(computed[key], outputs(checkpoint.lm.model)), checkpoint.key
        else:
            assert "size" in complaints[key], checkpoint.key
    stock = {checkpoint.key for checkpoint in saved if is_stock(checkpoint)}
    assert stock >= {f"{name}/uniform" for name in STOCK if name in ONE_OF_EACH}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_channels_alone_are_said_in_the_configuration(name: str, tmp_path: Path) -> None:
    lm = BY_NAME[name].lm()
    Narrow(channels=0.5, importance="magnitude", refit=False).apply(lm, None)
    assert not describe(lm.model)
    lm.model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(outputs(type(lm.model).from_pretrained(tmp_path)), outputs(lm.model))


def test_the_size_of_a_head_is_said_with_their_number() -> None:
    config = narrowed("llama", True).model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    config = narrowed("t5", True).model.config
    assert (config.num_heads, config.d_kv) == (2, 8)


def test_a_number_that_the_class_refuses_is_not_said() -> None:
    """Llama's configuration takes no number of heads that does not divide the width."""
    lm = BY_NAME["llama"].model()
    lm.config.num_key_value_heads = 4
    whole = LanguageModel.of(type(lm)(lm.config).eval())
    Narrow(heads=0.75, importance="magnitude", refit=False).apply(whole, None)
    assert {inner.count for inner in prunable_groups(whole)} == {3, 48}
    assert whole.model.config.num_attention_heads == 4 and describe(whole.model)


def test_files_shrink_by_what_is_gone(saved: list[Checkpoint], tmp_path: Path) -> None:
    for checkpoint in saved:
        name, how = checkpoint.key.split("/")
        if how == "mixed":
            save(BY_NAME[name].lm(), tmp_path / name)
            numbers, dense = (sum(p.numel() for p in m.parameters())
                              for m in (checkpoint.lm.model, BY_NAME[name].model()))  # fmt: skip
            assert abs(file_bytes(tmp_path / name) - file_bytes(checkpoint.folder) - 4 * (dense - numbers)) < 512


def test_the_way_back_is_a_stock_model(saved: list[Checkpoint], tmp_path: Path) -> None:
    for checkpoint in saved:
        model = checkpoint.lm.model
        if is_stock(checkpoint) or checkpoint.key.endswith("uniform"):
            continue
        dense = materialize(model)
        assert not describe(dense)
        torch.testing.assert_close(outputs(dense), outputs(model), rtol=1e-4, atol=1e-5)
        dense.save_pretrained(tmp_path / checkpoint.key)
        again, loading = type(model).from_pretrained(tmp_path / checkpoint.key, output_loading_info=True)
        assert not any(loading.values())
        assert torch.equal(outputs(again), outputs(dense))


@pytest.mark.parametrize("name", [name for name in HEADED if name in ("bert-classifier", "gpt2", "t5", "bart")])
@pytest.mark.parametrize("shrunk_first", [True, False])
def test_fewer_heads_may_also_be_smaller(name: str, shrunk_first: bool, tmp_path: Path) -> None:
    lm = BY_NAME[name].lm()
    data = Calibration(labelled_batches(lm, 4))
    steps = [ShrinkHeads(size=5), Narrow(heads=0.5, channels=0.5)]
    for step in steps if shrunk_first else reversed(steps):
        step.apply(lm, data)
    save(lm, tmp_path / "out")
    assert torch.equal(outputs(type(lm.model).from_pretrained(tmp_path / "out")), outputs(lm.model))
    dense = materialize(lm.model)
    assert not describe(dense)
    torch.testing.assert_close(outputs(dense), outputs(lm.model), rtol=1e-4, atol=1e-5)


def test_what_is_narrow_can_be_compressed_and_comes_back(tmp_path: Path) -> None:
    lm = narrowed("bert-classifier", False)
    Compress(method=Svd(rank=4), targets=("attention",)).apply(lm, None)
    save(lm, tmp_path / "out")
    again = type(lm.model).from_pretrained(tmp_path / "out")
    assert torch.equal(outputs(again), outputs(lm.model))
    torch.testing.assert_close(outputs(materialize(again)), outputs(lm.model), rtol=1e-4, atol=1e-5)


def test_reloaded_models_narrow_and_save_again(saved: list[Checkpoint], tmp_path: Path) -> None:
    folder = next(checkpoint.folder for checkpoint in saved if checkpoint.key == "bart/mixed")
    lm = LanguageModel.of(type(BY_NAME["bart"].model()).from_pretrained(folder))
    Narrow(heads=0.5, channels=0.5).apply(lm, Calibration(labelled_batches(lm, 4)))
    lm.model.save_pretrained(tmp_path)
    assert torch.equal(outputs(type(lm.model).from_pretrained(tmp_path)), outputs(lm.model))


@pytest.mark.parametrize(("name", "is_stock"), [("llama", True), ("mistral", False)])
def test_a_bias_is_stored_by_a_switch_of_the_class_or_by_the_structure(
    name: str, is_stock: bool, tmp_path: Path
) -> None:
    lm = BY_NAME[name].lm()
    Narrow(channels=0.5, add_bias=True).apply(lm, Calibration(labelled_batches(lm, 4)))
    assert {entry["kind"] for entry in describe(lm.model).values()} == {"dense"}
    save(lm, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert ("quantization_config" not in config) is is_stock
    assert config.get("mlp_bias", False) is is_stock
    assert torch.equal(outputs(type(lm.model).from_pretrained(tmp_path / "out")), outputs(lm.model))
    if not is_stock:
        with pytest.raises(UserError, match="bias"):
            materialize(lm.model)


@pytest.mark.parametrize("parameters", [{"q_biases": [16]}, {"q_bias": "wide"}])
def test_what_does_not_fit_is_said(saved: list[Checkpoint], tmp_path: Path, parameters: dict[str, object]) -> None:
    source = next(checkpoint.folder for checkpoint in saved if checkpoint.key == "deberta-masked/mixed")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    path = "deberta.encoder.layer.0.attention.self"
    entry = {"kind": "attributes", "values": {"num_attention_heads": 2}, "parameters": parameters}
    config["quantization_config"]["structure"] = {path: entry}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"structure\['{path}'\] does not fit the \w+ that is there"):
        AutoModel.from_pretrained(tmp_path)


REAL = ("bart-g2p-us", "mico-tinyllama-1m", "stories260K")


@pytest.mark.slow
def test_real_models_come_back_in_a_fresh_process(shared_models: Path, tmp_path: Path) -> None:
    """Cross-attention, groups that share keys, gated channels; as many everywhere, and what is worth most."""
    found = []
    for name in REAL:
        for how, step in (("uniform", Narrow(heads=0.5, channels=0.5)), ("mixed", Narrow(keep=0.7))):
            lm = load(str(shared_models / name))
            step.apply(lm, Calibration(labelled_batches(lm, 4)))
            folder = tmp_path / f"{name}-{how}"
            save(lm, folder)
            save_file(batch_for(lm.model), f"{folder}.batch")
            auto = find_auto_class(lm.model.config, [type(lm.model).__name__]).__name__
            found.append(Checkpoint(f"{name}/{how}", folder, auto, lm))
    computed, complaints = in_fresh_process([job(each, dtype="float32") for each in found], tmp_path, laconic=True)
    assert not complaints
    for each in found:
        assert torch.equal(computed[job(each, dtype="float32")["key"]], outputs(each.lm.model)), each.key
        assert is_stock(each) or each.key.endswith("mixed")
        tokens = torch.tensor([[5, 9, 7, 4]])
        said = [
            each.lm.model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=5, do_sample=False, use_cache=cached
            )
            for cached in (True, False)
        ]
        assert torch.equal(*said)
