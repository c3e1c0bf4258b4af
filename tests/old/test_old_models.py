"""Folders that earlier versions wrote load, run, and compute what they did."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from laconic.formats import FORMATS, ExpertStack, Format
from laconic.formats.expert_stacks import STACKS
from laconic.model import load as load_lm
from laconic.store import file_bytes
from laconic.store.expert_layers import EXPERTS
from laconic.store.shapes import ATTRIBUTES, MAPPED, RESIZED
from tests.old.reading import HERE, LOGITS, VERSIONS, load, logits, vectors

FOLDERS = [path for version in VERSIONS for path in sorted((version / "models").iterdir()) if path.is_dir()]
every_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parents[1].name}-{path.name}")


def test_there_is_a_folder_for_every_version() -> None:
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    assert project["version"] in [version.name for version in VERSIONS], "run `python -m tests.old.make`"
    assert all(any(folder.is_relative_to(version) for folder in FOLDERS) for version in VERSIONS)
    assert all(json.loads((version / "made.json").read_text())["laconic"] == version.name for version in VERSIONS)


@every_folder
def test_it_loads_and_gives_the_logits_that_it_gave(folder: Path) -> None:
    stored = load_file(folder.with_suffix(".safetensors"))
    expected = stored.pop(LOGITS)
    model = load(folder)
    torch.testing.assert_close(logits(model, stored), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        # By whichever kernel is fastest here, of which some round what they multiply.
        assert (model(**stored).logits - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
@every_folder
def test_laconic_finds_the_same_matrices_in_it(folder: Path) -> None:
    lm = load_lm(str(folder))
    assert lm.sites()
    assert file_bytes(folder) > 0


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_model_of_sentences_gives_the_vectors_that_it_gave(version: Path) -> None:
    folder = version / "embedder"
    stored = load_file(folder.with_suffix(".safetensors"))
    expected = stored.pop(LOGITS)
    torch.testing.assert_close(vectors(load_lm(str(folder)), stored), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(expected.norm(dim=1), torch.ones(len(expected)))


def test_every_format_was_stored() -> None:
    stored = {type(part) for folder in FOLDERS for part in load(folder).modules() if isinstance(part, Format)}
    stacks = {type(part) for folder in FOLDERS for part in load(folder).modules() if isinstance(part, ExpertStack)}
    missing = sorted(format.kind for format in (*FORMATS, *STACKS) if format not in stored | stacks)
    assert not missing, f"add a case to tests/old/models.py and run `python -m tests.old.make`: {missing}"


def test_every_other_shape_was_stored() -> None:
    kinds = set()
    for folder in FOLDERS:
        said = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
        kinds |= {entry["kind"] for entry in said.get("structure", {}).values()}
    assert kinds >= {RESIZED, ATTRIBUTES, MAPPED, EXPERTS}
