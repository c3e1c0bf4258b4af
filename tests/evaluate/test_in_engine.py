"""Figures of an engine are those of torch where the engine is torch, and where it lists only some tokens."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.api.in_engine import runs_in_engine
from laconic.cli.main import status
from laconic.errors import UserError
from laconic.evaluate import Evaluation, evaluate
from laconic.evaluate.engine_cost import NO_CACHE, EngineCost, prompt_lengths, written_tokens
from laconic.evaluate.in_engine import EngineModel, EngineSettings, evaluate_in_engine
from laconic.model import LanguageModel
from laconic.model.loading import load
from laconic.progress import silent
from laconic.report.engine import engine_tables
from laconic.report.evaluation import evaluation_remarks, evaluation_tables
from laconic.runtime.engine.config_file import positions_in
from laconic.runtime.engine.distributions import Distributions, LikeliestTokens, Logits
from laconic.runtime.engine.engine import Engine, Written
from laconic.store import save
from tests.architectures import compress_everything
from tests.evaluate.models import with_tokenizer
from tests.tokens import letters

LISTED = 7


class Torch(Engine):
    """A folder in torch, which says all logits, five positions at a time."""

    name, target, files, version, memory = "torch", "folder", "a folder", "torch", "memory of torch"
    has_cache = True

    @classmethod
    def check_installed(cls) -> None: ...

    @classmethod
    def find(cls, source: Path) -> Path | None:
        return source

    @classmethod
    def check_config(cls, config: Mapping[str, Any], source: str) -> None: ...

    @classmethod
    def positions(cls, path: Path) -> int | None:
        return positions_in(path)

    @classmethod
    def size(cls, path: Path) -> int:
        return 1000

    @classmethod
    def server(cls, path: Path, port: int, context: int) -> list[str]:
        return []

    def __init__(self, path: Path, context: int) -> None:
        self.lm = load(str(path))
        self.vocabulary, self.context = self.lm.model.config.vocab_size, context

    def predict(self, tokens: Sequence[int], start: int) -> Iterator[Distributions]:
        assert len(tokens) <= self.context
        with torch.no_grad():
            logits = self.lm.model(torch.tensor([tokens])).logits[0]
        for part in torch.arange(start, len(tokens)).split(5):
            yield self.answer(logits[part - 1], torch.tensor(tokens)[part])

    def answer(self, logits: torch.Tensor, targets: torch.Tensor) -> Distributions:
        return Logits(logits)

    def write(self, prompt: Sequence[int], count: int) -> Written:
        assert len(prompt) + count <= self.context
        return Written([0] * count, [0.5, *[0.25] * (count - 1)])

    def memory_bytes(self) -> int | None:
        return 2000

    def close(self) -> None: ...


class TorchLists(Torch):
    """The same, which lists the likeliest tokens only, and keeps no cache."""

    listed = LISTED
    has_cache = False

    def answer(self, logits: torch.Tensor, targets: torch.Tensor) -> Distributions:
        log_p = logits.double().log_softmax(-1)
        values, tokens = log_p.topk(LISTED)
        target = targets[:, None]
        return LikeliestTokens(torch.cat((target, tokens), 1), torch.cat((log_p.gather(1, target), values), 1))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[LanguageModel, LanguageModel]:
    """A compressed model and its original, saved."""
    small, original = compress_everything(with_tokenizer("llama"), rank=4), with_tokenizer("llama")
    save(small, tmp_path / "small")
    save(original, tmp_path / "original")
    return small, original


def found_in(
    engine: type[Engine],
    folder: Path,
    task: str,
    context: int | None = None,
    names: tuple[str, ...] = ("small", "original"),
) -> Evaluation:
    models = [EngineModel(engine, folder / name, name, letters("start")) for name in names]
    settings = EngineSettings(limit=5, lengths=(4, 10**6), context=context, track=silent)
    return evaluate_in_engine(models[0], models[1] if len(models) > 1 else None, [task], settings)


@pytest.mark.parametrize("context", [None, 9])
def test_an_engine_with_all_logits(
    pair: tuple[LanguageModel, LanguageModel], texts: Path, tmp_path: Path, context: int | None
) -> None:
    task = f"perplexity:{texts}"
    found = found_in(Torch, tmp_path, task, context)
    expected = evaluate(pair[0], [task], limit=5, against=pair[1], cost=False, context=context)
    for ours, theirs in ((found.results, expected.results), (found.original or {}, expected.original or {})):
        for metric, figure in theirs[task].items():
            assert ours[task][metric].value == pytest.approx(figure.value, rel=1e-4)
            assert ours[task][metric].high == pytest.approx(figure.high, rel=1e-4)
    assert found.fidelity is not None and expected.fidelity is not None
    assert found.fidelity.kl == pytest.approx(expected.fidelity.kl, rel=1e-3)
    for name in ("top1_agreement", "predictions", "rows", "context", "stride", "tokenizer", "note"):
        assert getattr(found.fidelity, name) == getattr(expected.fidelity, name)


def test_an_engine_that_lists_some_tokens(
    pair: tuple[LanguageModel, LanguageModel], texts: Path, tmp_path: Path
) -> None:
    task = f"perplexity:{texts}"
    whole, found = (found_in(engine, tmp_path, task) for engine in (Torch, TorchLists))
    assert whole.fidelity is not None and found.fidelity is not None
    assert 0 < found.fidelity.kl < whole.fidelity.kl
    assert found.fidelity.top1_agreement == whole.fidelity.top1_agreement
    assert found.results[task]["perplexity"].value == pytest.approx(whole.results[task]["perplexity"].value, rel=1e-5)
    remarks = evaluation_remarks(found.to_json())
    assert any(f"the {LISTED} likeliest" in line for line in remarks) and NO_CACHE in remarks


def test_the_cost_is_that_of_one_row(pair: tuple[LanguageModel, LanguageModel], texts: Path, tmp_path: Path) -> None:
    found = found_in(Torch, tmp_path, f"perplexity:{texts}")
    cost = found.to_json()["cost"]
    longest = positions_in(tmp_path / "small")
    assert longest is not None and isinstance(found.cost, EngineCost)
    new = written_tokens(longest)
    assert [(timing["prompt"], timing["new"]) for timing in cost["generation"]] == [(4, new), (longest - new, new)]
    assert cost["generation"][0]["prefill_tokens_per_second"] == 8
    assert cost["generation"][0]["decode_tokens_per_second"] == 4
    table = evaluation_tables(found.to_json())
    (title,) = (title for title in table if title.startswith("Size and speed"))
    assert [row[0] for row in table[title].rows] == ["this model", "this model", "original", "original"]
    (alone,) = engine_tables({"this model": cost}).values()
    assert alone.rows == table[title].rows[:2]
    assert "Memory is the memory of torch." in evaluation_remarks(found.to_json())


def test_a_model_alone(pair: tuple[LanguageModel, LanguageModel], texts: Path, tmp_path: Path) -> None:
    found = found_in(Torch, tmp_path, f"perplexity:{texts}", names=("small",))
    assert found.original is None and found.fidelity is None and found.cost is not None
    assert "original" not in found.to_json()


def test_other_tokens_are_refused(pair: tuple[LanguageModel, LanguageModel], texts: Path, tmp_path: Path) -> None:
    models = [
        EngineModel(Torch, tmp_path / name, name, letters("start", bos_token=first))
        for name, first in (("small", "<s>"), ("original", None))
    ]
    settings = EngineSettings(limit=2, lengths=(4,), context=None, track=silent)
    with pytest.raises(UserError, match="The models cannot be compared"):
        evaluate_in_engine(models[0], models[1], [f"perplexity:{texts}"], settings)


def test_prompts_leave_room_for_new_tokens() -> None:
    assert prompt_lengths((16, 128, 512), 100) == (16, 68) and prompt_lengths((16,), None) == (16,)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--runtime", "llama.cp"], "There is no runtime 'llama.cp': did you mean 'llama.cpp'?"),
        (["--runtime", "llama.cpp", "--tasks", "blimp"], "In the runtime 'llama.cpp', perplexity and the distance"),
        (["--runtime", "vllm", "--stream"], "stream is a setting of torch, and the runtime is 'vllm'"),
        (["--runtime", "llama.cpp", "--dtype", "bfloat16"], "dtype is a setting of torch"),
        (["--runtime", "llama.cpp", "--batch", "4"], "--batch must be 1 in the runtime 'llama.cpp', which is measured"),
        (["--runtime", "vllm", "--batch", "1,8"], "measured with one row; got [1, 8]"),
        (["--runtime", "vllm", "--limit", "5"], "--limit is a setting of tasks, and none is named"),
        (["--runtime", "llama.cpp", "--batch", "1"], "needs llama-cpp-python, not installed here: pip install"),
        (["--runtime", "llama.cpp"], "needs llama-cpp-python, not installed here: pip install"),
        (["--runtime", "vllm"], "LACONIC_VLLM must be the Python of an environment with vLLM; got 'nowhere'"),
    ],
)
def test_what_cannot_run_is_named_before_a_model_is_looked_for(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACONIC_VLLM", "nowhere")
    monkeypatch.setattr("laconic.runtime.engine.llama_cpp.find_spec", lambda _: None)
    assert status(["evaluate", "missing/folder/here", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_runtimes_of_torch_are_no_engines() -> None:
    assert runs_in_engine("llama.cpp", []) and runs_in_engine("vllm", [])
    assert not runs_in_engine("eager", []) and not runs_in_engine("openvino", [])


def test_json_of_an_engine_has_the_names_of_other_costs(
    pair: tuple[LanguageModel, LanguageModel], texts: Path, tmp_path: Path
) -> None:
    found = json.loads(json.dumps(found_in(Torch, tmp_path, f"perplexity:{texts}").to_json()))
    assert {"bytes", "memory_bytes", "generation", "runtime", "machine"} <= found["cost"].keys()
    assert found["original"]["cost"]["runtime"] == {"name": "torch", "library": "torch"}
