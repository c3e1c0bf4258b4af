"""The answer is the best span over all windows, as enumeration finds it; a question without an answer may get none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from laconic.calibrate.corpus import Answer, Corpus, Example
from laconic.calibrate.question_answering import windows
from laconic.errors import UserError
from laconic.evaluate import question_answering
from laconic.evaluate.question_answering import QuestionAnswering, best_span
from laconic.evaluate.tasks import check_task
from laconic.model import LanguageModel
from laconic.progress import silent
from tests.calibrate.files import write
from tests.task_models import ANSWER, TASK_MODELS
from tests.tokens import letters

TASK = QuestionAnswering("a.json")
CONTEXTS = (
    "a man and ada lovelace ran to the end of it, and back to the beginning",
    "it was the best of times, it was the worst of times",
    "here",
)


def lm_of(seed: int = 0) -> LanguageModel:
    return replace(TASK_MODELS[f"bert-{ANSWER.value}"].lm(seed), tokenizer=letters())


def ask(context: str, answer: str | None = None, question: str = "who ran") -> Example:
    answers = () if answer is None else (Answer(answer, context.index(answer)),)
    return Example(question, context, answers=answers)


@torch.no_grad()
def enumerated(lm: LanguageModel, example: Example, refuses: bool) -> str:
    """The answer by enumerating all spans of all windows, each run alone."""
    assert example.pair is not None
    best, text, null = -float("inf"), "", float("inf")
    for window in windows(lm, letters(), example, 40):
        kinds = window.row.token_type_ids
        output = lm.model(torch.tensor([window.row.input_ids]), token_type_ids=torch.tensor([kinds]))
        start, end = output.start_logits[0], output.end_logits[0]
        null = min(null, float(start[0] + end[0]))
        for first, (begin, stop) in enumerate(window.places):
            for last in range(first, min(first + question_answering.MAX_ANSWER, len(window.places))):
                score = float(start[first] + end[last])
                if stop and window.places[last][1] and score > best:
                    best, text = score, example.pair[begin : window.places[last][1]]
    return "" if refuses and null > best else text


@pytest.mark.parametrize("longest", [2, 5, 30])
@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_answer_is_the_best_span_of_all_windows(
    monkeypatch: pytest.MonkeyPatch, seed: int, longest: int, refuses: bool
):
    monkeypatch.setattr(question_answering, "MAX_ANSWER", longest)
    lm = lm_of(seed)
    # What enumeration finds is the right answer, so that each other one is wrong.
    examples = [ask(context, enumerated(lm, ask(context), refuses) or None) for context in CONTEXTS]
    if refuses:
        examples.append(ask("x"))
    result = TASK.evaluate(lm, Corpus("questions", "dev", tuple(examples)), silent)
    assert result.table[: len(CONTEXTS), :2].tolist() == [[1, 1]] * len(CONTEXTS)
    assert result.settings["windows"] > len(examples) + 2
    assert TASK.metrics(result.settings).keys() == result.metrics.keys()


@pytest.mark.parametrize("likelier", [1.0, -1.0])
def test_no_answer_is_given_where_the_first_token_is_likelier(likelier: float):
    lm = lm_of()
    head = lm.model.get_submodule("qa_outputs")

    def logits_of(_: torch.nn.Module, __: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(logits).index_fill(1, torch.tensor([0]), likelier)

    hook = head.register_forward_hook(logits_of)
    examples = (ask("bcd" * 20), ask("bcd"), ask("bcd", "bcd"))
    table = TASK.evaluate(lm, Corpus("questions", "dev", examples), silent).table
    assert table[:, 0].tolist() == ([1, 1, 0] if likelier > 0 else [0, 0, 0])
    # Without a question that has no answer, each gets one; all spans are as good.
    table = TASK.evaluate(lm, Corpus("questions", "dev", (ask("b", "b"), ask("c", "c"))), silent).table
    hook.remove()
    assert table[:, 0].tolist() == [1, 1]


def test_the_best_span_is_the_best_by_enumeration():
    generator = torch.Generator().manual_seed(0)
    places = [(0, 0)] * 4 + [(2 * at, 2 * at + 2) for at in range(50)] + [(0, 0)]
    for _ in range(20):
        start, end = torch.randn(2, len(places) + 3, generator=generator)
        found = best_span(start, end, places)
        pairs = [(first, last) for first in range(4, 54) for last in range(first, min(first + 30, 54))]
        first, last = max(pairs, key=lambda pair: float(start[pair[0]] + end[pair[1]]))
        assert found is not None and (found.begin, found.end) == (places[first][0], places[last][1])
    assert best_span(start, end, [(0, 0)] * 5) is None


def test_rows_without_answers_are_refused_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LACONIC_DATA", raising=False)
    path = write(tmp_path / "a.jsonl", '{"question": "who", "context": "ada"}\n')
    with pytest.raises(UserError, match="has no labels, and they are needed here; name data with answers"):
        check_task(f"question-answering:{path}", lm_of())
