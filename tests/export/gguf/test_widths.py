"""Widths that llama.cpp does not take are refused before weights are read."""

from pathlib import Path

import pytest
from torch import nn

from laconic.cli.main import status
from laconic.compress import Narrow
from laconic.errors import UserError
from laconic.export.gguf.checks import check_gguf
from laconic.export.gguf.widths import find_shape
from laconic.store import save
from tests.export.gguf.models import model
from tests.unread import spoil


@pytest.mark.parametrize("name", ["gpt2", "falcon-keys", "phi3", "mixtral", "llama"])
def test_widths_are_those_of_the_layers(name: str) -> None:
    shape = find_shape(lm := model(name), check_gguf(lm))
    groups = 4 if name == "gpt2" else 2
    channels = 256 if name == "gpt2" else 96
    assert (shape.heads, shape.groups, shape.channels) == ((4,) * 3, (groups,) * 3, (channels,) * 3)


def test_the_nearest_that_works_is_said_before_weights_are_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lm = model("qwen3")
    Narrow(channels=0.5, ranking="global", importance="magnitude", refit=False, multiple=1).apply(lm, None)
    save(lm, tmp_path / "model")
    spoil(tmp_path / "model")
    assert status(["export", str(tmp_path / "model"), "--to", "gguf", "-o", str(tmp_path / "out")]) == 2
    assert "llama.cpp takes qwen3 with the same widths in all blocks" in capsys.readouterr().err


def test_a_block_without_a_feed_forward_is_refused() -> None:
    lm = model("llama")
    lm.model.model.layers[1].mlp.down_proj = nn.Identity()
    with pytest.raises(UserError, match=r"has no tensor 'blk.1.ffn_down.weight', as its attention or feed-forward was"):
        check_gguf(lm)
