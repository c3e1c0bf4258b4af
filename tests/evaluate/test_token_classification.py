"""The predicted class of each word is that at its first token; entities are scored by seqeval."""

from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from seqeval.metrics import f1_score, recall_score

from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate import entities
from laconic.evaluate.tasks import check_task
from laconic.evaluate.token_classification import TokenClassification
from laconic.model import LanguageModel
from laconic.progress import silent
from tests.calibrate.files import write
from tests.task_models import ANSWER, TASK_MODELS, TOKENS
from tests.tokens import letters

TAGS = ("O", "B-PER", "I-PER")
TASK = TokenClassification("a.conll")
SENTENCES = (
    ("ada lovelace ran", "B-PER I-PER O"),
    ("it was the best of times", "O O O O O O"),
    ("byron", "B-PER"),
    ("wisdom of ada", "O O B-PER"),
    ("a b c d e f g h i j k l m n o p q r s t u v", "O " * 20 + "B-PER B-PER"),
)


def lm_of(*tags: str) -> LanguageModel:
    lm = replace(TASK_MODELS[f"bert-{TOKENS.value}"].lm(), tokenizer=letters())
    return lm.with_label_order(tags or TAGS)


def corpus_of(sentences: tuple[tuple[str, str], ...] = SENTENCES) -> Corpus:
    rows = (Example(text, words=tuple(text.split()), label=tuple(tags.split())) for text, tags in sentences)
    return Corpus("tags", "dev", tuple(rows))


@torch.no_grad()
def predicted(lm: LanguageModel, text: str, longest: int) -> list[str]:
    """The tag of each word, of one sentence alone; `O` for words that are cut off."""
    read = [letters().convert_tokens_to_ids(letter) for letter in text[: longest - 2]]
    ids = torch.tensor([[0, *read, 2]])
    classes = lm.model(ids).logits[0].argmax(-1).tolist()
    begins = [at for at in range(len(text)) if at == 0 or text[at - 1] == " "]
    return [TAGS[classes[1 + at]] if 1 + at < longest - 1 else "O" for at in begins]


def test_the_task_equals_scoring_by_hand():
    lm = lm_of()
    result = TASK.evaluate(lm, corpus_of(), silent)
    found = [predicted(lm, text, 40) for text, _ in SENTENCES]
    true = [tags.split() for _, tags in SENTENCES]
    assert result.settings["words_not_read"] == 22 - 19 and result.settings["words"] == 35
    assert len({tag for tags in found for tag in tags}) > 1
    assert result.settings["seqeval"] == version("seqeval")
    assert result.metrics["f1"](result.table) == pytest.approx(f1_score(true, found, zero_division=0))
    assert result.metrics["recall"](result.table) == pytest.approx(recall_score(true, found, zero_division=0))
    assert result.table[:, 1].tolist() == [3, 6, 1, 3, 22]
    assert TASK.metrics(result.settings).keys() == result.metrics.keys()


def test_classes_that_are_no_entities_are_scored_by_accuracy():
    lm = lm_of("NN", "VB", "DT")
    result = TASK.evaluate(lm, corpus_of((("ada ran", "NN VB"), ("the", "DT"))), silent)
    assert list(result.metrics) == ["accuracy"] and result.table[:, 1].tolist() == [2, 1]


def test_without_seqeval_the_task_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(entities, "find_spec", lambda name: None)
    sentence = r"The task 'token-classification:a.conll' needs seqeval, not installed here: pip install 'laconic-lm\["
    with pytest.raises(UserError, match=sentence):
        TASK.check_model(lm_of())
    TASK.check_model(lm_of("NN", "VB", "DT"))


def test_rows_are_checked_before_weights_are_read(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LACONIC_DATA", raising=False)
    path = write(tmp_path / "a.conll", "ada B-PER\nran B-LOC\n")
    with pytest.raises(UserError, match=r"a\.conll:1, word 2 has the label 'B-LOC', which is none of the classes"):
        check_task(f"token-classification:{path}", lm_of())
    with pytest.raises(UserError, match=r"needs a token-classification model; .*name a task for such models, like que"):
        check_task(f"token-classification:{path}", TASK_MODELS[f"bert-{ANSWER.value}"].lm())
