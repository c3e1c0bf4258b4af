"""The figures that `python -m benchmarks vllm` and `greedy` compute from folders and times."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.greedy import first_gaps
from benchmarks.vllm import stored_bytes
from benchmarks.vllm_quality import int8_layers, rounding_inputs
from benchmarks.vllm_speed import PROMPT, EagerModel, speeds
from laconic.export import export
from laconic.methods import Int8
from laconic.store import save
from tests.export.served_models import SCHEMES, compressed


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A plain folder, and the same model with attention in int8 and feed-forward in 4 bits for vLLM."""
    pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")
    root = tmp_path_factory.mktemp("folders")
    save(compressed("llama", dtype=torch.bfloat16), root / "plain")
    small = compressed("llama", (Int8(), "attention"), (SCHEMES["4 bits, groups of 32"], "ffn"), dtype=torch.bfloat16)
    export(small, "compressed-tensors", root / "served")
    return root / "plain", root / "served"


def test_bytes_are_those_of_changed_matrices(folders: tuple[Path, Path]) -> None:
    plain, served = folders
    found = stored_bytes(served, plain)
    # Two blocks: attention of 128 × (128 + 64 + 64 + 128) weights, feed-forward of 3 × 128 × 256.
    attention, ffn = 2 * 128 * 384, 2 * 3 * 128 * 256
    assert found["matrix_weights"] == attention + ffn
    # A byte and float32 scales of rows; 4 bits, and for 32 columns a scale of 16 bits and a zero point of 4.
    assert found["matrix_bytes"] == attention + 2 * 4 * 384 + ffn // 2 + ffn // 32 * 5 // 2


def test_inputs_are_rounded_where_the_folder_says_so(folders: tuple[Path, Path]) -> None:
    _, served = folders
    assert all("self_attn" in name for name in int8_layers(served)) and len(int8_layers(served)) == 8
    layer = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.eye_(layer.weight)
    model = torch.nn.ModuleDict({"proj": layer})
    x = torch.tensor([[127.0, 1.4]])
    path = served.parent / "one"
    path.mkdir()
    save_file({"proj.weight": torch.eye(2, dtype=torch.int8)}, path / "model.safetensors")
    with rounding_inputs(model, path):
        assert model["proj"](x).tolist() == [[127.0, 1.0]]
    assert torch.equal(model["proj"](x), x)


def test_greedy_text_is_compared_up_to_the_first_difference(folders: tuple[Path, Path]) -> None:
    plain, _ = folders
    prompt = [5, 6, 7]
    text = list(EagerModel(plain).write(prompt, 4).tokens)
    (gap,) = first_gaps(plain, [prompt], [text])
    # bfloat16 may choose another token only where two are close.
    assert gap is None or gap < 0.25
    other = [(text[0] + 1) % 90, *text[1:]]
    (gap,) = first_gaps(plain, [prompt], [other])
    assert gap is not None and gap > 0


def test_speeds_are_tokens_a_second() -> None:
    found = speeds([[2.0, 0.1, 0.1], [1.0, 0.2, 0.2], [4.0, 0.5, 0.5]])
    assert found["prefill"] == PROMPT / 2 and found["decode"] == 5
