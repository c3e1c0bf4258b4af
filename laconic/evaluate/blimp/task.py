"""BLiMP as an evaluation task: the share of minimal pairs whose acceptable sentence gets the higher probability.

A causal model scores a sentence by its log-probability, after the start token. A masked model scores it by the
pseudo-log-likelihood: the sum over tokens of the log-probability of each token when only that token is masked (Salazar
et al. 2020, equation 1, https://arxiv.org/abs/1910.14659).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.batching import IGNORED, Row, positions, tokenizer_of
from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate.blimp.pairs import PHENOMENON_OF, load_pairs, match_paradigms, pair_files
from laconic.evaluate.eval_task import MAX_COMPARED_ROWS, EvalTask, TaskResult, tokenizer_name
from laconic.evaluate.metrics import Metric, Scores, limit_evenly, macro_weights, weighted_mean
from laconic.evaluate.perplexity import start_token
from laconic.evaluate.prediction import batch_by_length, predict_labelled
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track

RIGHT, WEIGHT, NUMBER = 0, 1, 2
"""Columns of the table of scores; the last one contains the index of the phenomenon."""


@dataclass(frozen=True)
class Blimp(EvalTask):
    """Minimal pairs of BLiMP.

    Encoder-decoders are not supported: they only give the probability of a text conditional on another one.

    Args:
        pattern: name or glob of phenomena or paradigms; None for all.

    Reference:
        Warstadt et al., TACL 2020, https://arxiv.org/abs/1912.00582.
    """

    prefix = "blimp"
    spellings = ("blimp", "blimp/PHENOMENON")
    kinds = (ModelTask.CAUSAL, ModelTask.MASKED)

    pattern: str | None = None

    @classmethod
    def from_name(cls, name: str) -> "Blimp":
        """The task `blimp[/PATTERN]`.

        Raises:
            UserError: no phenomenon and no paradigm matches the pattern.
        """
        pattern = name[len(cls.prefix) :].strip("/:")
        if pattern:
            match_paradigms(pattern)
        return cls(pattern or None)

    @property
    def name(self) -> str:
        return self.source

    @property
    def source(self) -> str:
        return "blimp" if self.pattern is None else f"blimp/{self.pattern}"

    def check_data(self) -> None:
        pair_files()

    def load_corpus(self, limit: int | None) -> Corpus:
        """The pairs; at most `limit` of them, spread evenly over the paradigms."""
        paradigms = tuple(PHENOMENON_OF) if self.pattern is None else match_paradigms(self.pattern)
        return limit_evenly(Corpus(self.source, "test", tuple(load_pairs(paradigms))), limit)

    def texts(self, corpus: Corpus) -> Corpus:
        """Up to `MAX_COMPARED_ROWS` acceptable sentences, evenly over the paradigms."""
        rows = limit_evenly(corpus, MAX_COMPARED_ROWS).examples
        return replace(corpus, examples=tuple(Example(row.text) for row in rows))

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model.

        The table has three columns: 1 if the acceptable sentence is more probable, else 0; the weight of the pair in
        the mean over paradigms; the index of its phenomenon.
        """
        self.check_model(lm)
        sentences = [sentence for row in corpus.examples for sentence in (row.text, row.pair or "")]
        good, bad = log_probabilities(lm, sentences, track, self.name).reshape(-1, 2).T
        places = tuple((good.isfinite() & bad.isfinite()).nonzero()[:, 0].tolist())
        if not places:
            raise UserError(
                f"The model '{lm.source}' can read no pair of '{self.name}'; use one that reads longer sentences."
            )
        right = (good > bad)[list(places)].double()
        paradigm_of = [corpus.examples[at].group.partition("/")[2] for at in places]
        phenomenon_of = [PHENOMENON_OF[paradigm] for paradigm in paradigm_of]
        names = list(dict.fromkeys(phenomenon_of))
        numbers = [names.index(phenomenon) for phenomenon in phenomenon_of]
        table = torch.stack((right, macro_weights(paradigm_of), torch.tensor(numbers)), dim=1).numpy()
        settings = {
            "split": corpus.split,
            "score": "log-probability" if lm.task is ModelTask.CAUSAL else "pseudo-log-likelihood",
            "left_out": len(good) - len(places),
            "tokenizer": tokenizer_name(lm),
            "paradigms": _paradigm_scores(paradigm_of, table[:, RIGHT]),
        }
        return TaskResult(table, self.metrics(settings), settings, places)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        # `paradigms` is in the order of the rows, and so are the indices of the phenomena.
        return _metrics(list(dict.fromkeys(PHENOMENON_OF[paradigm] for paradigm in settings["paradigms"])))


def _metrics(phenomena: Sequence[str]) -> dict[str, Metric]:
    """The accuracy over all paradigms, and over the paradigms of each phenomenon if there are several phenomena."""
    overall = {"accuracy": weighted_mean(_right, WEIGHT)}
    if len(phenomena) == 1:
        return overall
    return overall | {
        f"accuracy/{name}": weighted_mean(_right, WEIGHT, (NUMBER, number)) for number, name in enumerate(phenomena)
    }


def _right(table: Scores) -> Float[np.ndarray, " rows"]:
    return table[:, RIGHT]


def _paradigm_scores(paradigm_of: Sequence[str], right: Float[np.ndarray, " rows"]) -> dict[str, Any]:
    """Number of pairs and accuracy of each paradigm."""
    hits: dict[str, list[float]] = {}
    for paradigm, hit in zip(paradigm_of, right.tolist(), strict=True):
        hits.setdefault(paradigm, []).append(hit)
    return {paradigm: {"pairs": len(found), "accuracy": sum(found) / len(found)} for paradigm, found in hits.items()}


BATCH = 64


def log_probabilities(
    lm: LanguageModel, sentences: Sequence[str], track: Track, what: str
) -> Float[Tensor, " sentences"]:
    """The log-probability of each sentence in nats; for a masked model, the pseudo-log-likelihood.

    Args:
        lm: a causal or masked language model.
        sentences: texts.
        track: shows progress.
        what: the name of the task, for progress.

    Returns:
        (sentences,) scores. NaN for a sentence without tokens to predict, or with too many tokens for the model.

    Reference:
        Salazar et al. 2020, equation 1, https://arxiv.org/abs/1910.14659.
    """
    rows = list(_causal_rows(lm, sentences) if lm.task is ModelTask.CAUSAL else _masked_rows(lm, sentences))
    longest = positions(lm)
    rows = [(at, row) for at, row in rows if longest is None or len(row.input_ids) <= longest]
    parts, data = batch_by_length(lm, [row for _, row in rows], BATCH)
    sums = torch.zeros(len(sentences), dtype=torch.float64)
    tokens = torch.zeros(len(sentences), dtype=torch.long)
    for part, (_, (values, lines, true, _)) in zip(parts, predict_labelled(lm, data, track, what), strict=True):
        assert true is not None, "the tokens are the labels of a language model"
        numbers = torch.tensor([rows[place][0] for place in part])[lines]
        sums.index_add_(0, numbers, -functional.cross_entropy(values.float(), true, reduction="none").double())
        tokens.index_add_(0, numbers, torch.ones_like(numbers))
    return torch.where(tokens > 0, sums, torch.nan)


def _causal_rows(lm: LanguageModel, sentences: Sequence[str]) -> Iterator[tuple[int, Row]]:
    first = start_token(lm)
    for at, ids in enumerate(tokenizer_of(lm)(list(sentences), add_special_tokens=False, verbose=False)["input_ids"]):
        tokens = [*([] if first is None else [first]), *ids]
        if len(tokens) > 1:
            yield at, Row(tokens, labels=tokens)


def _masked_rows(lm: LanguageModel, sentences: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """One row for each masked token."""
    tokenizer = tokenizer_of(lm)
    mask = tokenizer.mask_token_id
    if not isinstance(mask, int):
        raise UserError(f"The tokenizer of '{lm.source}' has no mask token; use that of a masked language model.")
    encoded = tokenizer(list(sentences), return_special_tokens_mask=True, verbose=False)
    for at, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)):
        for place in (place for place, added in enumerate(special) if not added):
            labels = [IGNORED] * len(ids)
            labels[place] = ids[place]
            yield at, Row([*ids[:place], mask, *ids[place + 1 :]], labels=labels)
