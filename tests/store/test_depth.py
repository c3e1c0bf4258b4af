"""Shortened models on disk: stock checkpoints where their class can hold them, and no loading by mistake where not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from laconic.calibrate import Calibration
from laconic.compress import Compress, Shorten
from laconic.compress.depth.cuts import parse_cuts
from laconic.compress.depth.trial import Replacement, drop_cuts, make_fitter
from laconic.errors import UserError
from laconic.evaluate import evaluate
from laconic.formats import LinearReplacement
from laconic.methods import Svd
from laconic.model import LanguageModel
from laconic.model.layers import find_layers
from laconic.model.task import find_auto_class
from laconic.store import file_bytes, materialize, save
from laconic.store.structure import describe
from tests.architectures import ARCHITECTURES, BY_NAME, alike, batch_for, outputs
from tests.calibrate.test_collect_stats import labelled_batches
from tests.store.checkpoints import Checkpoint, job
from tests.store.readers import in_fresh_process

KEEP_FIRST = ("modernbert-masked",)
GROUPED = ("albert-groups",)
NOT_STOCK = {
    "bert-classifier": {"replace": "linear"},
    "bart": {"replace": "linear"},
    "gemma2": {"replace": "bias"},
    "mistral": {"replace": "linear"},
    "t5": {"replace": "bias"},
    "gpt2": {"parts": "sublayers", "replace": "bias"},
    "deberta-v2-masked": {"parts": "sublayers"},
    "led": {"parts": "sublayers", "replace": "bias"},
}
"""A linear map behind a norm, a bias where the class has none, a part of a block."""


SWITCHED = (("llama", "bias"), ("llama", "linear"))
"""A bias where the class has one as soon as its configuration says so."""


def stand_for(lm: LanguageModel, blocks: dict[str, tuple[int | str, ...]], replace: Replacement) -> None:
    """Drop `blocks`, with that in their place whether it helps or not."""
    data = Calibration(labelled_batches(lm, 6))
    original = lm.shallow_copy()
    drop_cuts(lm, parse_cuts(lm, blocks), make_fitter(original, data, replace), original)


def checkpoint(lm: LanguageModel, folder: Path, key: str) -> Checkpoint:
    save(lm, folder)
    save_file(batch_for(lm.model), f"{folder}.batch")
    return Checkpoint(key, folder, find_auto_class(lm.model.config, [type(lm.model).__name__]).__name__, lm)


def blocks_to_drop(name: str, lm: LanguageModel) -> dict[str, tuple[int, ...]]:
    """The first block of each stack, where it can go."""
    index = {**dict.fromkeys(KEEP_FIRST, 1), **dict.fromkeys(GROUPED, 3)}.get(name, 0)
    return {layers.name: (index,) for layers in find_layers(lm)}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    """Saved models without one block: one of each architecture, and GPT-2 with each replacement of a block."""
    folder = tmp_path_factory.mktemp("short")
    found = []
    for architecture in ARCHITECTURES:
        lm = architecture.lm()
        Shorten(blocks=blocks_to_drop(architecture.name, lm)).apply(lm, None)
        found.append(checkpoint(lm, folder / architecture.name, architecture.name))
    for name, replace in (*SWITCHED, ("gpt2", "linear"), ("opt", "bias"), ("bert-masked", "bias"), ("phi", "linear")):
        lm = BY_NAME[name].lm()
        stand_for(lm, {"blocks": (1,)}, replace)
        found.append(checkpoint(lm, folder / f"{name}-{replace}", f"{name}/{replace}"))
    return found


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    folder = tmp_path_factory.mktemp("special")
    found = []
    for name, arguments in NOT_STOCK.items():
        lm = BY_NAME[name].lm()
        words = ("1.attention", "0.ffn") if "parts" in arguments else (1,)
        stacks = [layers.name for layers in find_layers(lm)]
        replace = arguments.get("replace", "nothing")
        stand_for(lm, dict.fromkeys(stacks, words), replace)
        found.append(checkpoint(lm, folder / name, name))
    return found


def test_stock_checkpoints_load_without_laconic(stock: list[Checkpoint], tmp_path: Path) -> None:
    computed, complaints = in_fresh_process([job(one) for one in stock], tmp_path, laconic=False)
    # The positions of Marian are computed, not stored.
    assert not {key: said for key, said in complaints.items() if "embed_positions." not in said}
    for one in stock:
        assert "quantization_config" not in (one.folder / "config.json").read_text(), one.key
        assert alike(computed[job(one)["key"]], outputs(one.lm.model)), one.key


def test_others_load_with_laconic_and_fail_without(special: list[Checkpoint], tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    computed, complaints = in_fresh_process([job(one) for one in special], tmp_path / "with", laconic=True)
    assert not complaints
    for one in special:
        assert describe(one.lm.model), one.key
        assert alike(computed[job(one)["key"]], outputs(one.lm.model)), one.key
    _, complaints = in_fresh_process([job(one) for one in special], tmp_path / "without", laconic=False)
    for one in special:
        assert "size" in complaints[job(one)["key"]], one.key


def test_files_shrink_by_what_was_dropped(tmp_path: Path) -> None:
    lm = BY_NAME["llama"].lm()
    save(lm, tmp_path / "whole")
    block = sum(parameter.nbytes for parameter in lm.model.model.layers[0].parameters())
    Shorten(blocks=(0,)).apply(lm, None)
    save(lm, tmp_path / "short")
    assert abs(file_bytes(tmp_path / "whole") - file_bytes(tmp_path / "short") - block) < 1024


@pytest.mark.parametrize("name", ["bert-classifier", "gpt2", "t5-gated"])
@pytest.mark.parametrize("first", ["compress", "shorten"])
def test_before_and_after_other_steps(name: str, first: str, tmp_path: Path) -> None:
    """The saved structure names the layers as they are numbered then."""
    lm = BY_NAME[name].lm()
    data = Calibration(labelled_batches(lm, 4))
    steps = [Compress(method=Svd(rank=6)), Shorten(blocks={layers.name: (0,) for layers in find_layers(lm)})]
    for step in steps if first == "compress" else reversed(steps):
        step.apply(lm, data)
    structure = describe(lm.model)
    assert structure and all(path in dict(lm.model.named_modules()) for path in structure)
    save(lm, tmp_path / "out")
    again = type(lm.model).from_pretrained(tmp_path / "out")
    assert alike(outputs(again), outputs(lm.model))
    assert len(find_layers(LanguageModel.of(again))[0]) == 1


def test_the_way_back(special: list[Checkpoint]) -> None:
    """A dropped part grows back as zeros; a map behind a norm has no place in a stock model."""
    for one in special:
        if one.key == "deberta-v2-masked":
            dense = materialize(one.lm.model)
            assert not describe(dense)
            torch.testing.assert_close(outputs(dense), outputs(one.lm.model), rtol=1e-4, atol=1e-5)
        if any(isinstance(module, LinearReplacement) for module in one.lm.model.modules()):
            what = NOT_STOCK[one.key]["replace"].replace("linear", "linear map")
            with pytest.raises(UserError, match=f"is followed by a {what} in place of dropped blocks, which no stock"):
                materialize(one.lm.model)


def test_the_card_says_what_stands_there(special: list[Checkpoint], stock: list[Checkpoint]) -> None:
    cards = {one.key: (one.folder / "README.md").read_text() for one in (*stock, *special)}
    assert "Dropped blocks are replaced by a linear map behind 1 of the norms: 4,096 bytes." in cards["bert-classifier"]
    assert "| constant |" in cards["gpt2"] and "import laconic" in cards["gpt2"]
    assert "import laconic" not in cards["gpt2/linear"]


def test_models_of_different_depth_are_compared(tmp_path: Path, tiny_model: Path, texts: Path) -> None:
    from laconic.model import load

    lm, whole = load(str(tiny_model)), load(str(tiny_model))
    Shorten(blocks=(0, "1.ffn")).apply(lm, None)
    save(lm, tmp_path / "short")
    found = evaluate(load(str(tmp_path / "short")), (f"fidelity:{texts}",), against=whole)
    assert found.fidelity is not None and found.fidelity.kl > 0
    assert found.cost is not None and found.original_cost is not None
    assert found.cost.bytes < found.original_cost.bytes
    assert all(a.macs < b.macs for a, b in zip(found.cost.speeds, found.original_cost.speeds, strict=True))
