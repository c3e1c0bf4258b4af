"""Perplexity and divergence in one pass equal a plain computation in float64, however the work is divided."""

import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate import Evaluation, ReferenceCache, evaluate
from laconic.evaluate.perplexity import Perplexity
from laconic.evaluate.state_file import FOLDER
from laconic.evaluate.window_reference import compare_in_windows, run_original
from laconic.evaluate.windows import find_windows, window_bounds
from laconic.model import LanguageModel
from laconic.progress import silent
from tests.architectures import compress_everything
from tests.evaluate.models import with_tokenizer

TEXTS = ("it was the best of times, it was the worst of times, it was the age of wisdom", "a tale", "", "we had it all")
CORPUS = Corpus("dickens", "dev", tuple(map(Example, TEXTS)))
TASK = Perplexity("dickens", context=16)


@torch.no_grad()
def plain(lm: LanguageModel, original: LanguageModel) -> tuple[torch.Tensor, ...]:
    """Nats of both models, divergence and agreement of every token, in float64, one window at a time."""
    rows = []
    models = [replace(model, model=model.copy().model.double()) for model in (lm, original)]
    for text in TEXTS:
        assert lm.tokenizer is not None
        ids = torch.tensor([[0, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        for start, new in window_bounds(ids.shape[1], 16, 8):
            part = ids[:, start : start + 16]
            scored = range(max(new - start, 1), part.shape[1])
            q, p = (model.model(part).logits[0].log_softmax(-1) for model in models)
            for at in scored:
                token = part[0, at]
                kl = (p[at - 1].exp() * (p[at - 1] - q[at - 1])).sum()
                same = p[at - 1].argmax() == q[at - 1].argmax()
                rows.append(torch.stack((-q[at - 1, token], -p[at - 1, token], kl, same.double())))
    return torch.stack(rows).unbind(1)


def compared(lm: LanguageModel, original: LanguageModel, task: Perplexity = TASK) -> tuple:
    reference = run_original(original, task, CORPUS, resume=False, track=silent)
    assert reference is not None
    found = compare_in_windows(lm, reference, 0, silent)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "gemma2"])
def test_one_pass_equals_a_plain_computation_in_float64(name: str):
    lm, original = compress_everything(with_tokenizer(name), rank=6), with_tokenizer(name)
    ours, theirs, fidelity = compared(lm, original)
    nats, original_nats, kl, same = plain(lm, original)
    assert len(nats) == sum(map(len, TEXTS)) == fidelity.predictions and fidelity.rows == 3
    for result, expected in ((ours, nats), (theirs, original_nats)):
        found = result.metrics["perplexity"](result.table)
        assert found == pytest.approx(math.exp(expected.mean()), rel=1e-6)
    assert fidelity.kl == pytest.approx(kl.mean().item(), abs=1e-6, rel=1e-5)
    assert fidelity.top1_agreement == same.mean().item()
    assert (fidelity.context, fidelity.stride, fidelity.dtype) == (16, 8, "float32")


def test_the_size_of_chunks_and_batches_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    lm, original = compress_everything(with_tokenizer("llama"), rank=6), with_tokenizer("llama")
    whole = compared(lm, original)
    monkeypatch.setattr(import_module("laconic.evaluate.window_scores"), "COMPARED_LOGITS", 70)
    monkeypatch.setattr(import_module("laconic.evaluate.windows"), "BATCH_TOKENS", 1)
    parts = compared(lm, original)
    for one, other in zip(whole[:2], parts[:2], strict=True):
        assert other.table == pytest.approx(one.table, rel=1e-6)
    assert parts[2].kl == pytest.approx(whole[2].kl, rel=1e-5)
    assert (parts[2].top1_agreement, parts[2].cosine) == pytest.approx((whole[2].top1_agreement, whole[2].cosine))


def test_batches_hold_windows_of_similar_length_and_every_window_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_module("laconic.evaluate.windows"), "FEW_TOKENS", 1)
    found = find_windows(with_tokenizer("llama"), CORPUS, 16)
    lengths = [[len(found.rows[index].input_ids) for index in part] for part in found.parts]
    assert len(lengths) > 1 and all(min(part) >= 0.9 * max(part) for part in lengths)
    assert sorted(index for part in found.parts for index in part) == list(range(len(found.rows)))
    assert [found.documents[index] for index in found.parts[0]] == found.documents_of(0).tolist()


@pytest.mark.parametrize(("context", "stride"), [(40, 20), (1024, 512), (2048, 1536), (None, 1536)])
def test_windows_share_half_of_the_context_and_at_most_512_tokens(context: int | None, stride: int):
    lm = with_tokenizer("llama")
    lm.model.config.max_position_embeddings = 32_768
    found = find_windows(lm, CORPUS, context)
    assert (found.context, found.stride) == (context or 2048, stride)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FOLDER


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    return f"perplexity:{tmp_path / 'text.txt'}"


def judged(text: str, resume: bool = True) -> Evaluation:
    lm = compress_everything(with_tokenizer("llama"), rank=6)
    return evaluate(lm, [text], against=with_tokenizer("llama"), cost=False, resume=resume)


def test_the_states_of_an_original_are_read_again(cache: Path, text: str, monkeypatch: pytest.MonkeyPatch):
    first = judged(text)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(import_module("laconic.evaluate.window_reference"), "scored_states", None)
    assert judged(text).to_json() == first.to_json()


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"rubbish"])
def test_damaged_or_short_states_are_computed_again(cache: Path, text: str, damage: bytes):
    first = judged(text)
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage or whole[:-4])
    assert judged(text).to_json() == first.to_json()
    assert entry.read_bytes() == whole


def test_states_are_not_kept_without_room(cache: Path, text: str, monkeypatch: pytest.MonkeyPatch):
    whole = judged(text, resume=False).to_json()
    assert not cache.exists()
    monkeypatch.setenv("LACONIC_CACHE_GB", "0")
    assert judged(text).to_json() == whole and not cache.exists()


def test_an_original_runs_once_for_several_models(text: str):
    original, references = with_tokenizer("llama"), ReferenceCache()
    calls: list[int] = []
    # A copy of the model has the same hook.
    original.model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    found = [
        evaluate(compress_everything(with_tokenizer("llama"), rank=rank), [text], against=original, cost=False,
                 references=references).to_json()
        for rank in (4, 6)
    ]  # fmt: skip
    # A short row whole and in two halves, and one batch.
    assert len(calls) == 3
    assert found[0]["original"] == found[1]["original"] and found[0]["fidelity"] != found[1]["fidelity"]


def test_models_with_other_windows_are_compared_in_rows(text: str):
    lm, original = with_tokenizer("gpt2"), with_tokenizer("gpt2")
    original.model.config.max_position_embeddings = 20
    found = evaluate(lm, [text], against=original, cost=False)
    assert found.settings[text]["context"] == 40
    # The rows are cut at the length that both can read.
    assert found.fidelity is not None and (found.fidelity.context, found.fidelity.stride) == (20, None)


def test_context_and_dtype_are_checked_before_a_model_runs(text: str):
    with pytest.raises(UserError, match="The context must be 2 to 40 tokens"):
        evaluate(with_tokenizer("gpt2"), [text], cost=False, context=41)
    with pytest.raises(UserError, match="dtype must be float32 or bfloat16; got 'float8'"):
        evaluate(with_tokenizer("gpt2"), [text], cost=False, dtype="float8")
    with pytest.raises(UserError, match="context is a setting of perplexity, and no such task is named"):
        evaluate(with_tokenizer("gpt2"), ["blimp"], cost=False, context=8)
    found = evaluate(with_tokenizer("gpt2"), [text], cost=False, context=8)
    assert (found.settings[text]["context"], found.settings[text]["dtype"]) == (8, "float32")
