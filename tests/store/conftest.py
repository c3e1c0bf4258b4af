"""The compressed checkpoints are written once and read by several tests."""

import pytest

from tests.store.checkpoints import Checkpoint, checkpoints


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    return list(checkpoints(tmp_path_factory.mktemp("checkpoints")))
