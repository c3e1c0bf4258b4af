"""Studies on the command line: what is shipped can be done, and what is only looked at is left as it was."""

from pathlib import Path

import pytest

from laconic.cli.main import status
from laconic.study import cells_of, check_cells, read_study

STUDIES = Path(__file__).parents[2] / "recipes" / "studies"


@pytest.mark.parametrize("name", ["000-drone-local", "001-ranks-local", "002-l1-local", "003-width-local", "quick"])
def test_every_cell_of_a_local_study_can_be_done(
    name: str, shared_models: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    (tmp_path / "here").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "models").symlink_to(shared_models)
    monkeypatch.chdir(tmp_path / "here")
    check_cells(cells_of(read_study(STUDIES / f"{name}.yaml")))


def test_a_report_of_no_study_makes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert status(["report", str(tmp_path)]) == 2
    assert "There is no study in" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
