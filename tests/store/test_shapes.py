"""Narrower heads on disk: smaller files, the same outputs in another process, and no loading by mistake."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import laconic
from laconic.calibrate import Calibration
from laconic.compress import Compress, ShrinkHeads
from laconic.errors import UserError
from laconic.methods import Svd
from laconic.model import LanguageModel
from laconic.store import file_bytes, materialize, save
from laconic.store.structure import describe
from tests.architectures import BY_NAME, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.headed import HEADED, SIZE
from tests.store.checkpoints import Checkpoint, hidden, job, saved_as, unexpected
from tests.store.readers import in_fresh_process

assert laconic
STOCK = ("t5", "t5-gated")
"""Architectures whose configuration has the size of a head."""


def narrow(name: str, and_compress: bool = False) -> LanguageModel:
    lm = BY_NAME[name].lm()
    ShrinkHeads(size=SIZE).apply(lm, Calibration(labelled_batches(lm, 4)))
    if and_compress:
        Compress(method=Svd(rank=4), targets=("attention",)).apply(lm, None)
    return lm


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    found = []
    for name in HEADED:
        for and_compress in (False, True):
            lm = narrow(name, and_compress)
            key = f"{name}/{'compressed' if and_compress else 'narrow'}"
            found.append(saved_as(lm, tmp_path_factory.mktemp("narrow"), key))
    return found


def test_fresh_process_gives_the_same_outputs(saved: list[Checkpoint], tmp_path: Path) -> None:
    jobs = [job(checkpoint, auto) for checkpoint in saved for auto in dict.fromkeys((checkpoint.auto, "AutoModel"))]
    computed, complaints = in_fresh_process(jobs, tmp_path, laconic=True)
    assert not unexpected(complaints)
    for checkpoint in saved:
        whole, base = computed[job(checkpoint)["key"]], computed[job(checkpoint, "AutoModel")["key"]]
        assert torch.equal(base, hidden(checkpoint.lm.model)), checkpoint.key
        if checkpoint.auto != "AutoModel":
            assert torch.equal(whole, outputs(checkpoint.lm.model)), checkpoint.key


def test_without_laconic_they_fail_unless_the_class_can_hold_them(saved: list[Checkpoint], tmp_path: Path) -> None:
    computed, complaints = in_fresh_process([job(checkpoint) for checkpoint in saved], tmp_path, laconic=False)
    for checkpoint in saved:
        key = job(checkpoint)["key"]
        if checkpoint.key in [f"{name}/narrow" for name in STOCK]:
            assert torch.equal(computed[key], outputs(checkpoint.lm.model))
        else:
            assert "size" in complaints[key], checkpoint.key


def test_files_shrink(saved: list[Checkpoint], tmp_path: Path) -> None:
    for checkpoint in saved:
        name, what = checkpoint.key.split("/")
        if what == "narrow":
            save(BY_NAME[name].lm(), tmp_path / name)
            numbers, dense = (sum(p.numel() for p in m.parameters())
                              for m in (checkpoint.lm.model, BY_NAME[name].model()))  # fmt: skip
            assert abs(file_bytes(tmp_path / name) - file_bytes(checkpoint.folder) - 4 * (dense - numbers)) < 512


@pytest.mark.parametrize("name", HEADED)
@pytest.mark.parametrize("and_compress", [False, True])
def test_the_way_back_is_a_stock_model(name: str, and_compress: bool, tmp_path: Path) -> None:
    model = narrow(name, and_compress).model
    dense = materialize(model)
    assert not describe(dense)
    torch.testing.assert_close(outputs(dense), outputs(model), rtol=1e-4, atol=1e-5)
    dense.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    assert torch.equal(outputs(again), outputs(dense))


def test_what_no_stock_model_can_hold_is_one_sentence() -> None:
    model = BY_NAME["bert-base"].model()
    layer = model.encoder.layer[0]
    layer.intermediate.dense, layer.output.dense = torch.nn.Linear(32, 56), torch.nn.Linear(56, 32)
    with pytest.raises(UserError, match=r"'encoder.layer.0.intermediate.dense' has a shape that its class cannot give"):
        materialize(model)


def test_narrow_feed_forward_reloads_too(tmp_path: Path) -> None:
    model = BY_NAME["gpt2"].model()
    mlp = model.transformer.h[1].mlp
    mlp.c_fc, mlp.c_proj = type(mlp.c_fc)(20, 32), type(mlp.c_proj)(32, 20)
    save(LanguageModel.of(model), tmp_path / "out")
    assert describe(model) == {
        "transformer.h.1.mlp.c_fc": {"kind": "resized", "shape": [20, 32]},
        "transformer.h.1.mlp.c_proj": {"kind": "resized", "shape": [32, 20]},
    }
    assert torch.equal(outputs(type(model).from_pretrained(tmp_path / "out")), outputs(model))


def test_reloaded_models_shrink_and_save_again(saved: list[Checkpoint], tmp_path: Path) -> None:
    folder = next(checkpoint.folder for checkpoint in saved if checkpoint.key == "bart/narrow")
    lm = LanguageModel.of(type(BY_NAME["bart"].model()).from_pretrained(folder))
    ShrinkHeads(size=3).apply(lm, Calibration(labelled_batches(lm, 4)))
    lm.model.save_pretrained(tmp_path)
    assert torch.equal(outputs(type(lm.model).from_pretrained(tmp_path)), outputs(lm.model))


def test_the_card_says_what_is_smaller(saved: list[Checkpoint]) -> None:
    folders = {checkpoint.key: checkpoint.folder for checkpoint in saved}
    card = (folders["bert-base/narrow"] / "README.md").read_text()
    assert "8 matrices were made smaller, from 32,768 to 20,480 bytes (62.5%)." in card
    assert "import laconic" in card
    assert "import laconic" not in (folders["t5/narrow"] / "README.md").read_text()


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        ("encoder.layer.0.attention.self.query", {"kind": "resized", "shape": [20]}),
        ("encoder.layer.0.attention.self.query", {"kind": "resized", "shape": [20, 32], "more": 1}),
        ("encoder.layer.0.attention.self", {"kind": "resized", "shape": [20, 32]}),
        ("encoder.layer.0.attention.self", {"kind": "attributes", "values": {"attention_head_sizes": 5}}),
        ("encoder.layer.0.attention.self", {"kind": "attributes", "values": {"attention_head_size": "5"}}),
    ],
)
def test_what_does_not_fit_is_said(
    saved: list[Checkpoint], tmp_path: Path, path: str, entry: dict[str, object]
) -> None:
    source = next(checkpoint.folder for checkpoint in saved if checkpoint.key == "bert-base/narrow")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["structure"] = {path: entry}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"structure\['{path}'\] does not fit the \w+ that is there"):
        AutoModel.from_pretrained(tmp_path)
