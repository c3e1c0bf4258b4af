"""Rows of a tensor in a file, a few at a time, are those of the whole tensor."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from laconic.model import loans_rows
from laconic.model.loans_rows import read_chunks, read_rows

TENSORS = {
    "matrix": torch.randn(10, 3),
    "stack": torch.randn(4, 2, 3).bfloat16(),
    "vector": torch.arange(7),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
}


@pytest.mark.parametrize("chunk", [1, 5, 2**22])
@pytest.mark.parametrize("name", TENSORS)
def test_chunks_make_the_tensor(name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loans_rows, "CHUNK", chunk)
    save_file(TENSORS, tmp_path / "file")
    chunks = list(read_chunks(tmp_path / "file", name, TENSORS[name].shape))
    assert torch.equal(torch.cat([part.flatten() for part in chunks]), TENSORS[name].flatten())
    assert (len(chunks) > 1) == (TENSORS[name].numel() > chunk)


def test_rows_come_in_the_order_of_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loans_rows, "ROWS", 2)
    save_file(TENSORS, tmp_path / "file")
    numbers = [9, 0, 4, 4, 1]
    assert torch.equal(read_rows(tmp_path / "file", "matrix", numbers), TENSORS["matrix"][numbers])
