"""Perplexity equals the plain loop of the transformers documentation, for any window."""

import math

import pytest
import torch

from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate.perplexity import METRICS, Perplexity
from laconic.evaluate.windows import window_bounds
from laconic.model import LanguageModel
from laconic.progress import silent
from tests.evaluate.models import with_tokenizer

TEXTS = (
    "it was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness",
    "a tale",
    "",
    "we had everything before us, we had nothing before us",
)
CORPUS = Corpus("dickens", "dev", tuple(Example(text) for text in TEXTS))


@torch.no_grad()
def reference(lm: LanguageModel, text: str, context: int, stride: int) -> tuple[float, int]:
    """Summed negative log-likelihood and number of tokens, one window at a time."""
    assert lm.tokenizer is not None
    ids = torch.tensor([[0, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    total, count, seen = 0.0, 0, 1
    for start in range(0, ids.shape[1], stride):
        end = min(start + context, ids.shape[1])
        log_p = lm.model(ids[:, start:end]).logits[0].double().log_softmax(-1)
        total -= sum(log_p[at - start - 1, ids[0, at]].item() for at in range(seen, end))
        count, seen = count + end - seen, end
        if end == ids.shape[1]:
            break
    return total, count


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(("context", "stride"), [(40, 20), (16, 15), (9, 1), (2, 1)])
def test_perplexity_equals_the_plain_loop(name: str, context: int, stride: int):
    lm = with_tokenizer(name)
    judged = Perplexity("dickens", context, stride).evaluate(lm, CORPUS, silent)
    rows = [reference(lm, text, context, stride) for text in TEXTS]
    assert judged.table[:, 1].tolist() == [count for _, count in rows] == [len(text) for text in TEXTS]
    assert judged.table[:, 0].tolist() == pytest.approx([total for total, _ in rows], rel=1e-5, abs=1e-6)
    nats, tokens = (sum(column) for column in zip(*rows, strict=True))
    words, size = len(" ".join(TEXTS).split()), sum(map(len, TEXTS))
    figures = {name: metric(judged.table) for name, metric in METRICS.items()}
    assert figures == pytest.approx(
        {
            "perplexity": math.exp(nats / tokens),
            "word_perplexity": math.exp(nats / words),
            "byte_perplexity": math.exp(nats / size),
            "bits_per_byte": nats / size / math.log(2),
        },
        rel=1e-5,
    )
    assert (judged.settings["context"], judged.settings["stride"]) == (context, stride)
    assert (judged.settings["tokens"], judged.settings["words"], judged.settings["bytes"]) == (tokens, words, size)


@pytest.mark.parametrize(
    ("tokens", "context", "stride"), [(100, 16, 5), (17, 16, 15), (16, 16, 8), (2, 16, 8), (7, 2, 1)]
)
def test_windows_score_every_token_once_with_context_before_it(tokens: int, context: int, stride: int):
    scored: list[int] = []
    for start, new in window_bounds(tokens, context, stride):
        end = min(start + context, tokens)
        scored += range(max(new, start + 1), end)
        assert all(at - start >= min(at, context - stride) for at in range(new, end))
    assert scored == list(range(1, tokens))


def test_the_window_is_the_model_s_own_unless_said():
    settings = Perplexity("dickens").evaluate(with_tokenizer("gpt2"), CORPUS, silent).settings
    assert (settings["context"], settings["stride"], settings["starts_with"]) == (40, 20, "<s>")


@pytest.mark.parametrize(
    ("context", "stride", "sentence"),
    [
        (41, 1, "The context must be 2 to 40 tokens for '.*'; got 41"),
        (1, None, "The context must be 2"),
        (16, 16, r"The stride must be between 1 and the context less one \(15\); got 16"),
        (16, -1, "The stride must be"),
    ],
)
def test_windows_that_cannot_be(context: int, stride: int | None, sentence: str):
    with pytest.raises(UserError, match=sentence):
        Perplexity("dickens", context, stride).evaluate(with_tokenizer("gpt2"), CORPUS, silent)


def test_other_models_and_empty_texts_are_refused():
    with pytest.raises(UserError, match=r"'perplexity:dickens' needs a causal model; .* is a masked model"):
        Perplexity("dickens").evaluate(with_tokenizer("bert-masked"), CORPUS, silent)
    with pytest.raises(UserError, match="has no text to predict"):
        Perplexity("x").evaluate(with_tokenizer("gpt2"), Corpus("x", "dev", (Example(""),)), silent)
