"""A step on a streamed model that was stopped at any part goes on to the result of a run without a stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from laconic.calibrate import Calibration
from laconic.compress import Compress, Outcome
from laconic.methods import Gptq, KfacSvd
from laconic.model import LanguageModel, load, loans
from laconic.model.loading import load_streamed
from laconic.store.part_structures import PartStructures
from tests.architectures import BY_NAME, Architecture
from tests.calibrate.test_collect_stats import labelled_batches
from tests.experts import MIXTURES
from tests.stopped import StopError
from tests.tiny_models import DECODER, SMALL

LLAMA: dict[str, Any] = {**DECODER, **SMALL, "num_hidden_layers": 3}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": Architecture("llama", lambda: LlamaForCausalLM(LlamaConfig(**LLAMA))).model,
    **{name: BY_NAME[name].model for name in ("llama-tied", "bart", "t5", "electra-classifier", "opt")},
    "mixtral": MIXTURES["mixtral"][0],
}
TARGETS = {
    "all": ("all",),
    "not the first block": ("model.layers.[12].*",),
    "a gap": ("model.layers.[02].*",),
    "head": ("head",),
    "head and embedding": ("head", "embedding"),
}
METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"method": Gptq(bits=4)},
    "gptq in order": {"method": Gptq(bits=4), "sequential": True},
    "kfac-svd": {"method": KfacSvd(multiple=1), "keep": 0.6},
}


def streamed(folder: Path, scratch: Path) -> LanguageModel:
    """The model in a folder, in a step that has begun."""
    lm = load_streamed(str(folder), scratch, structures=PartStructures())
    assert lm.loans is not None
    lm.loans.begin("0")
    return lm


def tensors(lm: LanguageModel) -> dict[str, Tensor]:
    with lm.on_loan(""):
        return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


def assert_same(found: tuple[Outcome, dict[str, Tensor]], expected: tuple[Outcome, dict[str, Tensor]]) -> None:
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in expected[1].items())


def run(lm: LanguageModel, step: Compress, batches: int = 2) -> tuple[Outcome, dict[str, Tensor]]:
    return step.apply(lm, Calibration(labelled_batches(lm, batches))), tensors(lm)


def run_in_pieces(
    folder: Path,
    scratch: Path,
    step: Compress,
    monkeypatch: pytest.MonkeyPatch,
    between: Callable[[Path], None] = lambda scratch: None,
) -> tuple[int, tuple[Outcome, dict[str, Tensor]]]:
    """Run a step that is stopped before it writes its second part, again and again, until it ends.

    Args:
        folder: the folder of the model.
        scratch: the scratch folder.
        step: the step.
        monkeypatch: replaces the function that writes parts.
        between: is called after each stop.

    Returns:
        The number of stops, and the result.
    """
    write_part, written = loans.write_part, 0

    def write(*arguments: Any) -> Any:
        nonlocal written
        if written:
            raise StopError
        written += 1
        return write_part(*arguments)

    monkeypatch.setattr(loans, "write_part", write)
    for stops in range(50):
        written = 0
        lm = streamed(folder, scratch)
        try:
            return stops, run(lm, step)
        except StopError:
            between(scratch / "0")
    raise AssertionError("it makes no progress")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    MODELS["llama"]().save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*keeps .* of the bytes")
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_goes_on_after_a_stop_at_each_part(targets, method, llama, tmp_path, monkeypatch) -> None:
    step = Compress(targets=TARGETS[targets], **METHODS[method])
    expected = run(streamed(llama, tmp_path / "whole"), step)
    stops, found = run_in_pieces(llama, tmp_path / "pieces", step, monkeypatch)
    assert_same(found, expected)
    assert stops == len(list((tmp_path / "whole").rglob("*.safetensors"))) - 1
    assert_same(run(load(str(llama)), step), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*keeps .* of the bytes", "ignore:.*saw fewer tokens")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"llama"}))
def test_every_kind_of_model_goes_on(name, method, tmp_path, monkeypatch) -> None:
    MODELS[name]().save_pretrained(tmp_path / "model")
    # The layers before an encoder-decoder are refused by both.
    is_refused = name in ("bart", "t5") and method != "gptq"
    targets = ("blocks", "head") if is_refused else ("all",)
    step = Compress(targets=targets, **METHODS[method])
    expected = run(streamed(tmp_path / "model", tmp_path / "whole"), step)
    stops, found = run_in_pieces(tmp_path / "model", tmp_path / "pieces", step, monkeypatch)
    assert_same(found, expected)
    assert stops == len(list((tmp_path / "whole").rglob("*.safetensors"))) - 1
