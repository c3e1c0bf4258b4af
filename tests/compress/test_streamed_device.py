"""A streamed step puts every tensor on the device of the block, or says which other one it means."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import laconic
from laconic.calibrate import Calibration
from laconic.compress import Compress, Narrow, Shorten, Step
from laconic.methods import Gptq, KfacPrune, KfacSvd
from laconic.model.loading import load_streamed
from laconic.store.part_structures import PartStructures
from tests.architectures import BY_NAME
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import MIXTURES

ROOT = Path(laconic.__file__).parent
STREAMING = ("calibrate", "compress", "model")
"""The packages whose code runs blocks that are on loan."""
FACTORIES = {
    torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.ones, torch.rand, torch.randint,
    torch.randn, torch.randperm, torch.tensor, torch.zeros,
}  # fmt: skip
STEPS: dict[str, Step] = {
    "gptq": Compress(method=Gptq(bits=4), targets=("all",)),
    "in order": Compress(method=Gptq(bits=4), sequential=True),
    "kfac-prune": Compress(method=KfacPrune(sparsity=0.5)),
    "spectrum": Compress(method=KfacSvd(multiple=1), keep=0.5, allocate="spectrum"),
    "narrow": Narrow(heads=0.5, channels=0.5, multiple=1),
    "narrow by gates": Narrow(heads=0.5, channels=0.5, importance="taylor", multiple=1),
    "shorten": Shorten(drop=1, select="influence"),
    "shorten by gates": Shorten(drop=1, select="taylor"),
}


class Made(TorchFunctionMode):
    """Notes where the streaming code makes a tensor on whichever device is the default."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        # safetensors makes tensors without elements itself.
        if func in FACTORIES and (kwargs or {}).get("device") is None and made.numel():
            frame: FrameType | None = sys._getframe(1)
            file = Path(frame.f_code.co_filename) if frame else Path()
            if any(file.is_relative_to(ROOT / package) for package in STREAMING):
                self.places.append(f"{file.name}:{frame.f_lineno if frame else 0}")
        return made


@pytest.mark.filterwarnings("ignore:.*saw fewer tokens", "ignore:.*keeps .* of the bytes", "ignore:A streamed model")
@pytest.mark.parametrize(
    ("name", "step"), [*(("llama", step) for step in STEPS), ("mixtral", "gptq"), ("t5", "kfac-prune")]
)
def test_no_tensor_is_made_without_a_device(name: str, step: str, tmp_path: Path) -> None:
    model = MIXTURES[name][0]() if name in MIXTURES else BY_NAME[name].model()
    model.save_pretrained(tmp_path / "model")
    lm = load_streamed(str(tmp_path / "model"), tmp_path / "scratch", structures=PartStructures())
    targets = Compress(method=Gptq(bits=4)) if name == "mixtral" else STEPS[step]
    data = Calibration(labelled_batches(lm, 2))
    with Made() as made:
        targets.apply(lm, data)
    assert made.places == []


def test_the_notes_find_a_tensor_without_a_device() -> None:
    made = Made()
    with made:
        exec(compile("torch.zeros(2)\ntorch.zeros(2, device='cpu')", str(ROOT / "calibrate" / "new.py"), "exec"))
    assert made.places == ["new.py:1"]
