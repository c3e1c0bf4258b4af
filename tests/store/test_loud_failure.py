"""Without laconic a compressed folder must not load: transformers alone would fill the gaps with random numbers."""

import pytest

from tests.store.checkpoints import TIED, Checkpoint, job
from tests.store.readers import in_fresh_process


@pytest.fixture(scope="module")
def compressed(saved: list[Checkpoint]) -> list[Checkpoint]:
    return [checkpoint for checkpoint in saved if checkpoint.key.startswith(("bert-classifier", "bert-base", *TIED))]


@pytest.fixture(scope="module")
def failures(compressed: list[Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    jobs = [job(checkpoint, auto) for checkpoint in compressed for auto in {checkpoint.auto, "AutoModel"}]
    return in_fresh_process(jobs, tmp_path_factory.mktemp("stock"), laconic=False)[1]


def test_stock_transformers_refuses_every_folder(compressed: list[Checkpoint], failures: dict[str, str]) -> None:
    for checkpoint in compressed:
        assert "size" in failures[f"{checkpoint.key}:{checkpoint.auto}:None"], checkpoint.key


def test_base_models_too_unless_only_the_head_is_compressed(
    compressed: list[Checkpoint], failures: dict[str, str]
) -> None:
    for checkpoint in compressed:
        if "/head/" not in checkpoint.key:
            assert f"{checkpoint.key}:AutoModel:None" in failures, checkpoint.key
