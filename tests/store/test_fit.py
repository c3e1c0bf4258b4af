"""Folders that laconic wrote: tensors that are not those of their structure are told before a number is read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from laconic.errors import UserError
from laconic.model.loading import check_model
from laconic.store import save
from tests.architectures import BY_NAME, compress_everything
from tests.model.checkpoints.test_fit import MISTAKES, Tensors, matrix_of_a_block
from tests.runtime.mixed import EXACT, ROUNDING, mixed


@pytest.mark.parametrize(("changed", "sentence"), MISTAKES.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_factors(tmp_path: Path, changed: Callable[[Tensors, str], Tensors], sentence: str) -> None:
    save(compress_everything(BY_NAME["llama"].lm(), rank=4), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    save_file(changed(tensors, matrix_of_a_block(tensors)), file, {"format": "pt"})
    with pytest.raises(UserError, match=f"^The weights of '{tmp_path}/out' .*{sentence}"):
        check_model(str(tmp_path / "out"))


def test_every_format(tmp_path: Path) -> None:
    # Every folder that is saved is loaded, and so judged; here the tensors of every layer are missed.
    lm = mixed(BY_NAME["bart"].lm(), EXACT | ROUNDING)
    save(lm, tmp_path / "out")
    check_model(str(tmp_path / "out"))
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    for site in lm.sites(("blocks",)):
        own = [name for name in sorted(tensors) if name.startswith(f"{site.name}.") and not name.endswith(".bias")]
        save_file({name: tensor for name, tensor in tensors.items() if name != own[0]}, file, {"format": "pt"})
        with pytest.raises(UserError, match=f"are incomplete: 1 of its tensors is missing, the first is '{own[0]}'"):
            check_model(str(tmp_path / "out"))
