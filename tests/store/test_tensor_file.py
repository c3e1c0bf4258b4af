"""A file that is written in chunks is one that safetensors would write."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from laconic.errors import UserError
from laconic.store.tensor_file import ChunkedTensor, write_tensors

TENSORS = {
    "b": torch.randn(4, 3),
    "a": torch.randn(2, 3, 5).bfloat16(),
    "codes": torch.arange(9, dtype=torch.uint8),
    "mask": torch.tensor([[True, False]]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "steps": torch.arange(3),
    "f8": torch.randn(6).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("size", [1, 100])
def test_safetensors_reads_what_was_written(size: int, tmp_path: Path) -> None:
    chunked = {
        name: ChunkedTensor(tuple(tensor.shape), tensor.dtype, partial(iter, tensor.flatten().split(size)))
        for name, tensor in TENSORS.items()
    }
    write_tensors(chunked, tmp_path / "chunks")
    found = load_file(tmp_path / "chunks")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


def test_the_bytes_are_those_of_safetensors_after_rounding_to_the_dtype_of_the_file(tmp_path: Path) -> None:
    values = torch.randn(8)
    chunks = {"x": ChunkedTensor((8,), torch.float16, lambda: iter(values.split(3)))}
    write_tensors(chunks, tmp_path / "chunks")
    save_file({"x": values.half()}, tmp_path / "whole", {"format": "pt"})
    assert (tmp_path / "chunks").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_dtype_that_the_format_cannot_name_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    chunks = {"x": ChunkedTensor((2,), torch.complex128, lambda: iter(torch.zeros(2, dtype=torch.complex128)))}
    with pytest.raises(UserError, match=r"cannot hold 'x' in torch.complex128; convert it to another dtype\.$"):
        write_tensors(chunks, tmp_path / "chunks")
    assert not (tmp_path / "chunks").exists()
