"""Saved models reload bit by bit, in another process and with every Auto class."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import laconic
from laconic.errors import UserError
from laconic.model import LanguageModel
from laconic.store import LaconicConfig, attach, skeleton
from tests.architectures import BY_NAME, alike, compress_everything, factors, outputs
from tests.store.checkpoints import Checkpoint, hidden, in_half, job, unexpected
from tests.store.readers import in_fresh_process

assert laconic


@pytest.fixture(scope="module")
def reloaded(saved: list[Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    jobs = []
    for checkpoint in saved:
        jobs += [job(checkpoint, dtype="float32"), job(checkpoint, "AutoModel", "float32")]
        jobs += [job(checkpoint)] if checkpoint.lm.dtype == torch.float16 else []
    computed, complaints = in_fresh_process(jobs, tmp_path_factory.mktemp("reload"), laconic=True)
    assert not unexpected(complaints)
    return computed


def test_fresh_process_gives_the_same_outputs(saved: list[Checkpoint], reloaded: dict[str, Tensor]) -> None:
    assert len(saved) > 40
    for checkpoint in saved:
        computed = reloaded[f"{checkpoint.key}:{checkpoint.auto}:float32"]
        assert alike(computed, outputs(checkpoint.lm.model)), checkpoint.key


def test_stored_dtype_is_the_default_one(saved: list[Checkpoint], reloaded: dict[str, Tensor]) -> None:
    in_float16 = [checkpoint for checkpoint in saved if checkpoint.lm.dtype == torch.float16]
    assert in_float16
    for checkpoint in in_float16:
        computed = reloaded[f"{checkpoint.key}:{checkpoint.auto}:None"]
        assert computed.dtype == torch.float16, checkpoint.key
        assert torch.equal(computed.float(), in_half(checkpoint.lm.model).float()), checkpoint.key


def test_base_model_of_a_head_checkpoint(saved: list[Checkpoint], reloaded: dict[str, Tensor]) -> None:
    for checkpoint in saved:
        computed = reloaded[f"{checkpoint.key}:AutoModel:float32"]
        assert alike(computed, hidden(checkpoint.lm.model)), checkpoint.key


def test_head_model_of_a_base_checkpoint(saved: list[Checkpoint]) -> None:
    base = next(checkpoint for checkpoint in saved if checkpoint.key == "bert-base/everything/float32")
    model = AutoModelForSequenceClassification.from_pretrained(base.folder)
    assert alike(outputs(model.base_model), outputs(base.lm.model))


def test_save_pretrained_works_by_itself(tmp_path: Path) -> None:
    model = compress_everything(BY_NAME["llama-tied"].lm(), rank=4).model
    attach(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert alike(outputs(again), outputs(model))
    # What changes after loading is written as it then is.
    lm = LanguageModel.of(again)
    site = lm.sites(("*.layers.0.mlp.down_proj.left",))[0]
    lm.replace(site, factors(site, rank=2))
    again.save_pretrained(tmp_path / "again")
    assert alike(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), outputs(again))


def test_reloaded_model_casts_and_trains(saved: list[Checkpoint]) -> None:
    model = AutoModelForCausalLM.from_pretrained(next(c.folder for c in saved if c.key == "gpt2/everything/float16"))
    model.float().train()
    tokens = torch.arange(8)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if ".h." in n)


def low_rank(**changed: object) -> dict[str, object]:
    """A structure of one matrix of BERT's, with some of its entry changed."""
    entry = {"kind": "low-rank", "out_features": 32, "in_features": 48, "rank": 4, "bias": True, **changed}
    if entry["kind"] == "resized":
        entry = {"kind": "resized", "shape": changed["shape"]}
    return {"structure": {"encoder.layer.0.output.dense": entry}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 7, "later": {}}, "quantization_config.version must be 1"),
        ({"structure": None}, "quantization_config.structure in config.json must map layers"),
        (
            {"structure": {"a": {"kind": "sparse"}, "b": [1]}},
            r"to their formats; got \{'b': \[1\]\}: take",
        ),
        ({"structure": {"encoder.layer.0.output.dense": "low-rank"}}, "must map layers to their formats"),
        ({"structure": {"encoder.layer.0.output.dense": {"kind": "tensor-train"}}}, "upgrade laconic"),
        ({"structure": {"encoder.layer.0.output.dense": {"kind": "low-rank", "rnk": 3}}}, "does not fit the kind"),
        (low_rank(out_features=-1), r"does not fit the kind 'low-rank': Trying to create tensor with negative"),
        (low_rank(rank="4"), "does not fit the kind 'low-rank': "),
        (low_rank(in_features=True), r"does not fit the kind 'low-rank': its shape would be \(32, True\); take the"),
        (low_rank(out_features=0), r"does not fit the kind 'low-rank': its shape would be \(0, 48\)"),
        (low_rank(kind=["low-rank"]), r"is stored as \['low-rank'\], which this version of laconic does not know"),
        (low_rank(aliases=3), r"must have paths as aliases and source; got \{'aliases': 3\}"),
        (low_rank(source=[]), r"must have paths as aliases and source; got \{'source': \[\]\}"),
        (low_rank(kind="resized", shape=[-1, 4]), "does not fit the Linear that is there"),
        ({"structure": {"encoder.layer.0": {"kind": "attributes", "values": {}, "parameters": [1]}}}, "does not fit"),
    ],
)
def test_what_this_version_cannot_read_is_said(
    saved: list[Checkpoint], tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    source = next(checkpoint.folder for checkpoint in saved if checkpoint.key == "bert-base/everything/float32")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        AutoModel.from_pretrained(tmp_path)
    # And before any weight is looked at.
    with pytest.raises(UserError, match=sentence):
        skeleton(str(tmp_path))


def test_a_configuration_without_formats_says_so() -> None:
    assert LaconicConfig({}, 1).to_dict() == {"quant_method": "laconic", "version": 1, "structure": {}}


def test_a_record_without_its_version() -> None:
    with pytest.raises(UserError, match=r"quantization_config\.version must be 1, .*; got None"):
        LaconicConfig({})
