import pytest


@pytest.fixture
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are found without the data folder of the machine."""
    monkeypatch.delenv("LACONIC_DATA", raising=False)
