"""The metrics of SQuAD: exact match, and the F1 of the words that a predicted answer shares with a right one.

Texts are compared in lower case, without punctuation, without the articles a, an and the, and with single spaces. The
best of several right answers counts (Rajpurkar et al. 2016, section 6.1, https://arxiv.org/abs/1606.05250). For a
question without an answer, the right answer is the empty text, and both metrics are 1 or 0 (Rajpurkar et al. 2018,
https://arxiv.org/abs/1806.03822).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from string import punctuation

from laconic.evaluate.metrics import Metric, Scores, Share, weighted_mean

EXACT, F1, HAS_ANSWER = 0, 1, 2
"""Columns of a table; the last is 1 for a question that has an answer, else 0. Column 3 has a weight of 1."""
WEIGHT = 3

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", punctuation)


def normalize_answer(text: str) -> str:
    """A text as answers are compared.

    Example:
        >>> normalize_answer("The  Tower, of London.")
        'tower of london'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, right: str) -> float:
    """1 if two answers are equal after normalization, else 0."""
    return float(normalize_answer(answer) == normalize_answer(right))


def answer_f1(answer: str, right: str) -> float:
    """The F1 of the words of an answer.

    Args:
        answer: the predicted answer.
        right: a right answer.

    Returns:
        The harmonic mean of the share of the predicted words that are right and of the share of the right words that
        are predicted; for an empty answer, whether both are empty.

    Example:
        >>> answer_f1("in London", "London"), answer_f1("", "London"), answer_f1("", "")
        (0.6666666666666666, 0.0, 1.0)
    """
    found, wanted = normalize_answer(answer).split(), normalize_answer(right).split()
    if not found or not wanted:
        return float(found == wanted)
    return 2 * sum((Counter(found) & Counter(wanted)).values()) / (len(found) + len(wanted))


def answer_scores(answer: str, right: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of an answer, each with the best of the right answers.

    Args:
        answer: the predicted answer; empty for no answer.
        right: the right answers; empty if the question has none.

    Example:
        >>> answer_scores("the Tower", ["Tower of London", "Tower"]), answer_scores("London", [])
        ((1.0, 1.0), (0.0, 0.0))
    """
    # An answer of nothing but articles and punctuation is as good as none.
    known = [text for text in right if normalize_answer(text)] or [""]
    return max(exact_match(answer, text) for text in known), max(answer_f1(answer, text) for text in known)


def answer_metrics(settings: Mapping[str, int]) -> dict[str, Metric]:
    """The metrics of a table of answers.

    Args:
        settings: `unanswerable`, the number of questions without an answer. With such questions, the metrics are also
            given for questions with an answer, and the exact match for those without.
    """
    metrics: dict[str, Metric] = {
        "f1": weighted_mean(_f1, WEIGHT),
        "exact_match": Share(lambda table: table[:, EXACT] == 1),
    }
    if settings["unanswerable"]:
        metrics |= {
            "f1/answerable": weighted_mean(_f1, WEIGHT, (HAS_ANSWER, 1)),
            "exact_match/answerable": weighted_mean(_exact, WEIGHT, (HAS_ANSWER, 1)),
            "exact_match/unanswerable": weighted_mean(_exact, WEIGHT, (HAS_ANSWER, 0)),
        }
    return metrics


def _f1(table: Scores) -> Scores:
    return table[:, F1]


def _exact(table: Scores) -> Scores:
    return table[:, EXACT]
