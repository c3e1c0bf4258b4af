"""The seed studies as they are, on the models of the hub that they name: each starts, and does a cell of every model.

The models are tiny stand-ins that lie in the hub's cache as the originals do, with weights in pytorch_model.bin alone.
"""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from laconic.cli.main import status
from laconic.model import load
from laconic.study import Ledger
from tests.conftest import REPOSITORY
from tests.study.stand_ins import LETTERS, STAND_INS, stand_in

STUDIES = REPOSITORY / "laconic" / "recipes" / "studies"
ROWS = 40
DRONE = "axes.recipe=[{small: ../seeds/drone-small.yaml}, {influence: ../seeds/depth-influence.yaml}]"
CELLS = {
    "000-drone": ["axes.task=[glue/rte,glue/stsb]", DRONE, "axes.drop=[1]"],
    "001-ranks": ["axes.method=[svd]", "axes.rank=[4]", "axes.then=[nothing]"],
    "002-l1": ["axes.sparsity=[0.5]"],
    "003-width": ["axes.heads=[0.5]", "axes.channels=[0.5]", "include=[]", "exclude=[]"],
    "004-knowledge": ["axes.method=[magnitude]", "axes.sparsity=[0.5]", "axes.targets=[coc:ffn]"],
}
"""One cell, or a few, of each: what one model and task are done with."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def few_rows(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows of the real data, and facts whose answers the stand-ins have a token for."""
    there = tmp_path / "data"
    for pattern in ("glue/*/train.tsv", "glue/*/dev.tsv", "g2p/*.jsonl"):
        for file in shared_data.glob(pattern):
            few = there / file.relative_to(shared_data)
            few.parent.mkdir(parents=True, exist_ok=True)
            with file.open(encoding="utf-8") as rows:
                few.write_text("".join(line for _, line in zip(range(ROWS), rows, strict=False)), encoding="utf-8")
    facts = [
        {"source": "TREx", "relation": "P30", "sub": letter, "obj": letter, "masked_sentence": f"{letter} is [MASK] ."}
        for letter in LETTERS
    ]
    (there / "lama").mkdir()
    (there / "lama" / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    monkeypatch.setenv("LACONIC_DATA", str(there))


def test_every_study_has_its_cells() -> None:
    assert {file.stem for file in STUDIES.glob("0*.yaml") if "local" not in file.stem} == set(CELLS)


def named(study: str) -> list[str]:
    return yaml.safe_load((STUDIES / f"{study}.yaml").read_text())["axes"]["model"]


def test_every_model_that_is_named_has_a_stand_in() -> None:
    assert {model for study in CELLS for model in named(study)} == set(STAND_INS)


# microsoft/deberta-base names no class in config.json, and has a head in its file that no study needs.
@pytest.mark.filterwarnings("ignore:The config.json of .* names no class:laconic.errors.CheckpointNotice")
@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("study", CELLS)
@pytest.mark.slow
def test_a_study_starts(study: str, hub: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for model in named(study):
        stand_in(model, hub)
        assert load(model).source == model
    few = ["axes.seed=[0]", "samples=4", "limit=6", "cost={batch: [1], length: [8]}"]
    code = status(["study", str(STUDIES / f"{study}.yaml"), "-o", str(tmp_path / "out"), *CELLS[study], *few])
    assert code in (0, 1), capfd.readouterr().err
    records, invalid = Ledger(str(tmp_path / "out")).all()
    failed = [record["error"]["sentence"] for record in records if record["state"] != "done"]
    assert (code, failed, invalid) == (0, [], [])
    done = {record["axes"]["model"] for record in records}
    assert done == {Path(model).name for model in named(study)}
